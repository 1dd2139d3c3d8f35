"""A Redis that answers and does not let us do our work: forbidden commands, a cluster, a replica.

All that is an operator's matter: it is refused at the start, told by doctor and readiness, and at
run time held without an attempt.
"""

import asyncio
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.api.readiness import checks
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands import subscriber
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.local.binaries import find_valkey
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.valkey import local_valkey
from evosaga.orchestrator.maintenance import redis_checks
from evosaga.orchestrator.maintenance.redis_checks import RedisUnfit
from evosaga.orchestrator.routing import ClinicCache, Route
from evosaga.orchestrator.whatsapp.redis_use import REDIS_USE
from evosaga.sagas.outcome import Held
from evosaga.sagas.whatsapp.steps.routing_key import trouble
from tests.harness.chaos.proxy import Proxy, through, upstream_of
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, delete, outcome, publish, story
from tests.support.waiting import eventually

Rule = Callable[..., Any]


@pytest.fixture
def settings(settings: Settings, own_valkey: LocalServer) -> Settings:
    """On a Valkey that nobody else uses."""
    return settings.model_copy(update={"redis_url": own_valkey.url})


@pytest.fixture
async def admin(own_valkey: LocalServer) -> AsyncIterator[Redis]:
    """A user that stays allowed everything, whatever becomes of the others."""
    async with streams.connect(own_valkey.url) as first:
        await rule(first, "admin", "on", ">admin", "~*", "&*", "+@all")
    async with streams.connect(named(own_valkey.url, "admin")) as client:
        yield client


def named(url: str, user: str) -> str:
    return url.replace("://", f"://{user}:{user}@", 1)


async def rule(redis: Redis, user: str, *rules: str) -> None:
    await redis.execute_command("ACL", "SETUSER", user, *rules)  # type: ignore[no-untyped-call]


async def test_what_is_forbidden_at_run_time_is_held_and_burns_no_attempt_and_undoes_nothing(
    settings: Settings, pool: Pool, admin: Redis, evolution: SimulatedEvolution
) -> None:
    held = (
        "SELECT data ->> 'message' FROM evosaga.saga_events WHERE saga_id::text = $1 "
        "AND type = 'step.failed' AND data ->> 'code' = 'redis_misconfigured'"
    )
    async with running_worker(settings) as worker:
        for forbidden, words in (
            ("-eval", "the command EVAL"),
            ("resetchannels", "a channel"),
            ("-publish", "PUBLISH"),
        ):
            await rule(admin, "default", forbidden)
            command = await publish(admin, create())

            async def said(of: str = command) -> str:
                return await pool.fetchval(held, of) or ""

            await eventually(said, 20, message=f"it to be held: {forbidden}")
            assert words in await said()
            await rule(admin, "default", "+@all", "allchannels")
            saga = await outcome(pool, command, 45)
            assert saga.status == "completed", forbidden
            assert not worker.failed.done()
            lines = await story(pool, saga)
            assert not [line for line in lines if line.startswith("compensation")], forbidden
    assert len(evolution.journal.requests("create")) == 3
    burned = "SELECT max((data ->> 'attempt')::int) FROM evosaga.saga_events WHERE data ? 'attempt'"
    failed = "SELECT count(*) FROM evosaga.saga_events WHERE data ->> 'code' = 'redis_error'"
    assert await pool.fetchval(failed) == 0
    assert await pool.fetchval(burned) is not None


async def test_readiness_is_red_while_no_command_can_be_read_and_says_why(
    settings: Settings, admin: Redis, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber, "_FAILING", 1.0)
    async with parts_with_worker(settings) as parts:
        assert parts.reader is not None
        assert (await checks(parts))["consumers"].ok
        await rule(admin, "default", "-xreadgroup")

        async def red() -> bool:
            found = await checks(parts)
            return "XREADGROUP" in found["consumers"].said and not found["consumers"].ok

        await eventually(red, 20, message="the consumers to be red")

        async def told() -> bool:
            return "XREADGROUP" in (await checks(parts))["redis"].said

        await eventually(told)
        await rule(admin, "default", "+@all")
        saga = await outcome(pool, await publish(admin, create()), 30)
        assert saga.status == "completed"

        async def green() -> bool:
            found = await checks(parts)
            return found["consumers"].ok and found["redis"].ok

        await eventually(green, 20, message="all to be green again")


FORBIDDING: Final = [
    ("~* &* +@all -@scripting", "forbids EVAL"),
    ("~* &* +@all -@blocking", "XREADGROUP"),
    ("~* resetchannels +@all", "PUBLISH on wa:instances:added"),
    ("~* &* +@all -@transaction", "MULTI"),
    ("~evosaga:* &* +@all", "whatsapp:instance:*"),
    ("~evosaga:* ~whatsapp:* &* +@all", "XADD on wa:events"),
    ("~* &* +@all -@write", "SET"),
    ("~* &* +@all -xautoclaim", "XAUTOCLAIM"),
    ("~* &* +@all -xgroup|create", "XGROUP"),
]


async def test_a_worker_is_refused_on_a_redis_that_forbids_something_and_nothing_is_written(
    own_valkey: LocalServer, admin: Redis
) -> None:
    for number, (rules, words) in enumerate(FORBIDDING):
        user = f"limited-{number}"
        await rule(admin, user, "on", f">{user}", *rules.split())
        async with streams.connect(named(own_valkey.url, user)) as limited:
            with pytest.raises(RedisUnfit) as refused:
                await redis_checks.require(limited, use=REDIS_USE)
            assert words in str(refused.value), rules
            assert redis_checks.rights(REDIS_USE) in str(refused.value), rules
        assert await admin.dbsize() == 0, rules


async def test_the_rights_that_are_named_are_enough_for_everything(
    settings: Settings, own_valkey: LocalServer, admin: Redis, pool: Pool
) -> None:
    await rule(admin, "limited", "on", ">limited", *redis_checks.rights(REDIS_USE).split())
    limited = settings.model_copy(update={"redis_url": named(own_valkey.url, "limited")})
    async with streams.connect(str(limited.redis_url)) as client:
        await redis_checks.require(client, use=REDIS_USE)
        [warning] = (await redis_checks.look(client, use=REDIS_USE)).faults
        assert (warning.check, warning.fatal) == ("info", False)
    async with running_worker(limited) as worker:
        made = await outcome(pool, await publish(admin, create()))
        gone = await outcome(pool, await publish(admin, delete(str(made.instance_name))))
        assert (made.status, gone.status) == ("completed", "completed")
        assert worker.reader.healthy
    denied: Any = await admin.execute_command("ACL", "LOG")  # type: ignore[no-untyped-call]
    assert {entry[b"object"] for entry in denied} <= {b"info"}


async def test_an_evicting_redis_is_refused(own_redis: Redis) -> None:
    await redis_checks.require(own_redis, use=REDIS_USE)
    await own_redis.config_set("maxmemory-policy", "allkeys-lfu")
    with pytest.raises(RedisUnfit, match="set maxmemory-policy to noeviction"):
        await redis_checks.require(own_redis, use=REDIS_USE)


async def test_a_replica_is_told_and_no_reason_to_refuse_since_it_may_become_a_master(
    own_redis: Redis,
) -> None:
    await own_redis.replicaof("127.0.0.1", "1")
    await redis_checks.require(own_redis, use=REDIS_USE)
    assert "set EVOSAGA_REDIS_URL to the master" in str(
        await redis_checks.trouble_of(own_redis, "worker", REDIS_USE)
    )
    await own_redis.replicaof("NO", "ONE")

    async def well() -> bool:
        return await redis_checks.trouble_of(own_redis, "worker", REDIS_USE) is None

    await eventually(well)


# -- the command line


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def test_the_command_line_refuses_such_a_redis_in_a_sentence_and_the_doctor_goes_on(
    evosaga: Evosaga, own_valkey: LocalServer, admin: Redis
) -> None:
    await rule(admin, "limited", "on", ">limited", "~*", "&*", "+@all", "-@scripting", "-info")
    limited = evosaga.having(
        redis_url=named(own_valkey.url, "limited"), api_keys="me:a-key-of-the-tests-that-is-long"
    )
    for verb in ("worker", "serve", "api"):
        ran = await limited(verb)
        assert ran.code == 2
        assert "its access list forbids EVAL" in ran.err
        assert "ACL SETUSER" in ran.err
    ran = await limited("doctor", "--json")
    found = {check["check"]: check for check in ran.json["checks"]}
    assert ran.code == 1
    assert (found["rights"]["verdict"], found["info"]["verdict"]) == ("bad", "warn")
    assert {"api keys", "webhooks"} <= found.keys()


async def test_a_redis_that_only_forbids_info_is_good_enough(
    evosaga: Evosaga, own_valkey: LocalServer, admin: Redis
) -> None:
    await rule(admin, "app", "on", ">app", "~*", "&*", "+@all", "-@dangerous")
    ran = await evosaga.having(redis_url=named(own_valkey.url, "app"))("doctor", "--json")
    assert ran.code == 0, ran.out
    found = {check["check"]: check["verdict"] for check in ran.json["checks"]}
    assert (found["redis"], found["info"], found["commands"]) == ("ok", "warn", "warn")


# -- a cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[str]:
    """A single node in cluster mode that holds every slot; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--dir", str(tmp_path), "--save", "", "--cluster-port"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        options.append(str(probe.getsockname()[1]))
    command = [str(find_valkey().path), *options, "--cluster-enabled", "yes", "--daemonize", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
    url = f"redis://127.0.0.1:{port}/0"
    try:
        async with Redis.from_url(url) as client:

            async def ok() -> bool:
                try:
                    told: Any = await client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
                except (OSError, Exception):
                    return False
                return bool(told["cluster_state"] == "ok")

            async def answers() -> bool:
                try:
                    return bool(await client.ping())
                except Exception:
                    return False

            await eventually(answers, 20)
            await client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
            await eventually(ok, 20, message="the cluster to be up")
        yield url
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def test_a_cluster_is_refused_at_the_start_and_by_doctor_and_held_at_run_time(
    evosaga: Evosaga, cluster: str, own_redis: Redis
) -> None:
    there = evosaga.having(redis_url=cluster)
    ran = await there("worker")
    assert ran.code == 2
    assert "Redis Cluster" in ran.err
    assert f"set EVOSAGA_REDIS_URL to redis+cluster://{cluster.split('/')[2]}/" in ran.err
    told = await there("doctor", "--json")
    assert told.code == 1
    [mode] = [check for check in told.json["checks"] if check["check"] == "mode"]
    assert mode["verdict"] == "bad"
    async with streams.connect(cluster) as client:
        for attempt in (
            client.eval("return 1", 2, "a", "b"),
            client.mget("a", "b"),
        ):
            with pytest.raises(Exception, match="slot") as refused:
                await attempt
            said = trouble(refused.value)  # type: ignore[arg-type]
            assert isinstance(said, Held)
            assert said.code == "redis_misconfigured"


# -- a URL that serves other programs as well


async def test_parameters_that_are_not_the_urls_business_are_left_out(
    settings: Settings, own_valkey: LocalServer, own_redis: Redis, pool: Pool
) -> None:
    url = f"{own_valkey.url}?decode_responses=true&protocol=2&socket_timeout=0.1&encoding=latin-1"
    settings = settings.model_copy(update={"redis_url": url})
    async with running_worker(settings) as worker:
        saga = await outcome(pool, await publish(own_redis, create()))
        assert saga.status == "completed"
        assert worker.reader.healthy


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/1?decode_response=true", "'decode_response' is not one that evosaga knows"),
        ("unix:///tmp/s?tls=true", "'tls' is not one"),
        ("redis://h/0?ssl_cert_reqs=none", "rediss://"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "may be none, optional, required"),
        ("redis://h/staging", "the number of a database"),
        ("redis://h/0?db=one", "whole number"),
        ("redis+cluster://h:1,h:2/3", "no numbered databases"),
        ("redis+cluster://h:1/?db=2", "no numbered databases"),
        ("redis+cluster://h:1/?ssl_password=x", "not for a cluster"),
        ("redis+cluster://h:1;h:2/", "several with commas"),
        ("redis+cluster://me:pass/word@h:1/", "percent-encoded"),
        ("redis+cluster://h:1/?timeout_of=3", "'timeout_of' is not one that evosaga knows"),
        ("redis+cluster://h:70000/", "host:port"),
        ("redis+sentinel://h:1,h:2/", "must name the service"),
        ("redis+sentinel://h:1/mine/one", "must name the service"),
        ("redis+cluster://h:1/?ssl_cert_reqs=none", "rediss://"),
        ("redis://h:1,h:2/", "can't be read as a URL"),
    ],
)
def test_a_parameter_that_nobody_knows_is_refused_by_name(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL") as refused:
        load_settings(_env_file=None, redis_url=url)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "rediss://user:p%40ss@h:6380/3?ssl_cert_reqs=none&protocol=3",
        "unix://user:pw@/tmp/s?db=3&health_check_interval=10",
        "redis://h",
        "redis://h:6379/",
        "redis+cluster://me:p%40ss@h1:7000,h2,[::1]:7001/?client_name=me&socket_timeout=3",
        "rediss+cluster://h1:7000/?ssl_ca_certs=/ca.pem",
        "redis+sentinel://me:pw@h1,h2:26380/my-master/2?sentinel_username=s&sentinel_password=pw",
        "rediss+sentinel://h1/mine",
    ],
)
def test_usual_urls_are_taken(url: str) -> None:
    assert load_settings(_env_file=None, redis_url=url).redis_url == url


# -- demoted in place


async def test_a_master_that_is_demoted_in_place_is_left_for_where_the_address_leads_now(
    settings: Settings, pool: Pool, own_redis: Redis, own_valkey: LocalServer
) -> None:
    """Its connections stay open, as behind a service's address, and it answers READONLY."""
    with local_valkey() as other:
        async with (
            streams.connect(other.url) as heir,
            Proxy(upstream_of(own_valkey.url)) as address,
            Proxy(upstream_of(own_valkey.url)) as to_master,
            Proxy(upstream_of(other.url)) as to_heir,
        ):
            await heir.replicaof("127.0.0.1", str(to_master.port))
            behind = settings.model_copy(update={"redis_url": through(own_valkey.url, address)})
            async with running_worker(behind) as worker:
                before = await outcome(pool, await publish(own_redis, create()))

                async def caught_up() -> bool:
                    ours = await own_redis.info("replication")
                    theirs = await heir.info("replication")
                    return bool(
                        theirs["master_link_status"] == "up"
                        and theirs["slave_repl_offset"] == ours["master_repl_offset"]
                    )

                await eventually(caught_up, 20)
                address.lead_new_to(upstream_of(other.url))
                await heir.replicaof("NO", "ONE")
                await own_redis.replicaof("127.0.0.1", str(to_heir.port))
                made = await outcome(pool, await publish(heir, create()), 60)
                assert (before.status, made.status) == ("completed", "completed")
                key = f"whatsapp:instance:{made.instance_name}"
                assert await heir.exists(key)
                await eventually(lambda: worker.reader.healthy, 30)
                assert not worker.failed.done()


async def test_a_connection_to_a_replica_is_not_used_again(own_valkey: LocalServer) -> None:
    with local_valkey() as other:
        async with (
            Proxy(upstream_of(own_valkey.url)) as address,
            streams.connect(own_valkey.url) as master,
        ):
            client = streams.connect(through(own_valkey.url, address))
            await client.set("k", "v")
            address.lead_new_to(upstream_of(other.url))
            await master.replicaof("127.0.0.1", "1")
            with pytest.raises(ReadOnlyError):
                await client.set("k", "w")
            assert await client.set("k", "x")
            await client.aclose()


async def test_a_routing_worker_leaves_a_demoted_redis_as_well_whatever_client_it_has(
    own_valkey: LocalServer, pool: Pool
) -> None:
    route = Route(uuid.uuid4(), "wa-x", str(uuid.uuid4()), None, "Clínica Sol")
    with local_valkey() as other:
        async with (
            Proxy(upstream_of(own_valkey.url)) as address,
            streams.connect(own_valkey.url) as master,
        ):
            theirs = Redis.from_url(through(own_valkey.url, address), decode_responses=True)
            clinics = ClinicCache(theirs, pool)
            assert await clinics.set(route)
            address.lead_new_to(upstream_of(other.url))
            await master.replicaof("127.0.0.1", "1")
            with pytest.raises(ReadOnlyError):
                await clinics.set(route)
            assert await clinics.set(route)
            await theirs.aclose()
