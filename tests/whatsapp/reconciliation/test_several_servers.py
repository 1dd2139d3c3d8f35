"""Upkeep over several Evolution servers: what one of them does not say harms nobody on another."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.evolution_servers import read_servers
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.scheduler import Job, Scheduler, SharedJob
from evosaga.orchestrator.whatsapp.health import monitor
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor
from evosaga.orchestrator.whatsapp.integrations.connection import integrations, observe
from evosaga.orchestrator.whatsapp.integrations.pairing import current_qr
from evosaga.orchestrator.whatsapp.jobs import jobs_of
from evosaga.orchestrator.whatsapp.reconciliation.drift import reconcile_plan
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed, OneList, merge
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import implausibility
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler, find, run_once
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Keep, Row, Snapshot
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key
from tests.conftest import API_KEY, SECRET
from tests.support.commandline import Evosaga
from tests.support.driving import count, delete, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.reconciliation.conftest import Rows
from tests.whatsapp.reconciliation.test_health import states
from tests.whatsapp.reconciliation.test_reconcile import PHONE, healed, made, resurrected

BERLIN_KEY = "the-key-of-berlin"


@dataclass(frozen=True)
class House:
    """Two servers and everything that looks after them."""

    settings: Settings
    here: SimulatedEvolution
    berlin: SimulatedEvolution
    services: Services
    keeper: Reconciler
    doctor: HealthMonitor


@pytest.fixture
async def house(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> AsyncIterator[House]:
    async with (
        SimulatedEvolution(api_key=BERLIN_KEY, pace=0.05) as berlin,
        EvolutionApi(evolution.url, API_KEY, timeout=5.0) as one,
        EvolutionApi(berlin.url, BERLIN_KEY, timeout=2.0) as other,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        servers = {"default": one, "berlin": other}
        services = Services(servers, redis, http, KeyRing([SECRET]), quiet_seconds=0.3, pool=pool)
        keeper = Reconciler(
            pool,
            services,
            CommandHandler(pool, EventLog(pool), services, discover()),
            (),
            quiet=0.0,
        )
        known = read_servers({"berlin": {"url": berlin.url, "api_key": BERLIN_KEY}})
        given = settings.model_copy(update={"evolution_servers": known, "lease_seconds": 10.0})
        yield House(given, evolution, berlin, services, keeper, HealthMonitor(pool, services))


async def found(house: House) -> list[tuple[str, str]]:
    return [(drift.what, drift.where) for drift in (await find(house.keeper)).drifts]


async def test_every_server_is_listed_and_an_orphan_is_removed_where_it_is(
    house: House, pool: Pool, redis: Redis
) -> None:
    async with running_worker(house.settings):
        orphans = [
            await resurrected(pool, redis, house.here),
            await resurrected(pool, redis, house.berlin, server="berlin"),
        ]
        kept = [await made(pool, redis), await made(pool, redis, server="berlin")]
        done = await healed(house.keeper)
        assert {(d.what, d.where) for d in done.drifts} == {
            ("orphan", orphan.instance_name) for orphan in orphans
        }
        servers = (house.here, house.berlin)
        assert [list(server.rows()) for server in servers] == [[s.instance_name] for s in kept]
        assert await found(house) == []


async def test_a_row_gets_its_connection_and_its_qr_code_from_its_own_server(
    house: House, pool: Pool, redis: Redis
) -> None:
    async with running_worker(house.settings):
        saga = await made(pool, redis, server="berlin", channel="WHATSAPP-BAILEYS")
    name, services = str(saga.instance_name), house.services
    (known,) = await integrations(pool, names=[name])
    assert (
        known.server,
        (await observe(services.server(known.server), services.keys, known)).state,
    ) == (
        "berlin",
        "connecting",
    )
    shown = await current_qr(
        pool, redis, services.servers, services.keys, name, watching=True, again=True
    )
    assert shown.state == "qr"
    house.berlin.pair(name, PHONE)
    await eventually(lambda: house.berlin.rows()[name].state == "open")
    done = await monitor.run_once(house.doctor)
    assert done.summary()["states"] == {"connected": 1}
    assert await pool.fetchval("SELECT whatsapp_number FROM healthcare.integrations") == PHONE
    assert house.here.journal.requests("connect") == house.here.journal.requests("create") == []


async def test_a_server_without_a_list_that_can_be_believed_makes_nothing_missing_anywhere(
    house: House, pool: Pool, redis: Redis, subtests: pytest.Subtests
) -> None:
    async with running_worker(house.settings):
        berliners = [await made(pool, redis, server="berlin") for _ in range(5)]
        lost = await made(pool, redis)
        await healed(house.keeper)
        await monitor.run_once(house.doctor)
        house.here.drop(str(lost.instance_name))
        for mode in ("list_empty", "5xx_before", "hang_before"):
            async with EvolutionApi(house.berlin.url, BERLIN_KEY, timeout=0.5) as hasty:
                with subtests.test(mode):
                    servers = {**house.services.servers, "berlin": hasty}
                    services = replace(house.services, servers=servers)
                    operation = "fetch" if mode == "list_empty" else None
                    house.berlin.arm(mode, operation=operation, times=None)
                    await makes_nothing_missing(
                        replace(house.keeper, services=services),
                        replace(house.doctor, services=services),
                        str(lost.instance_name),
                    )
            house.berlin.disarm()
        rows = await pool.fetch("SELECT status FROM healthcare.integrations")
        assert sorted(row["status"] for row in rows) == ["connected"] * 5 + ["disconnected"]
    assert len(house.berlin.live()) == len(berliners)


async def makes_nothing_missing(keeper: Reconciler, doctor: HealthMonitor, lost: str) -> None:
    seen = await find(keeper)
    assert [drift.where for drift in seen.drifts] == [lost]
    assert seen.drifts[0].what in ("missing", "still_missing")
    assert list(seen.unseen) == ["berlin"]
    for _ in range(3):
        checked = await monitor.run_once(doctor)
        assert checked.aborted is None
        assert list(checked.unseen) == ["berlin"]
        assert (checked.summary()["not_looked_at"] or "").startswith("berlin: ")
    assert await states(doctor.pool) == ["connected"] * 5 + ["missing"], "they stay as they were"


async def test_what_was_seen_on_a_server_is_not_forgotten_while_it_can_not_be_looked_at(
    house: House, pool: Pool, redis: Redis
) -> None:
    known = "SELECT count(*) FROM evosaga.sightings"
    async with running_worker(house.settings):
        orphan = await resurrected(pool, redis, house.berlin, server="berlin")
    assert len((await run_once(house.keeper)).drifts) == 1
    house.berlin.arm("5xx_before", times=None)
    assert (await run_once(house.keeper)).drifts == []
    assert await count(pool, known) == 1
    house.berlin.disarm()
    house.berlin.drop(str(orphan.instance_name))
    await eventually(lambda: house.services.servers["berlin"].state.state != "open")
    assert (await run_once(house.keeper)).unseen == {}
    assert await count(pool, known) == 0


async def test_what_is_over_on_one_server_is_forgotten_while_another_is_away(
    house: House, pool: Pool, redis: Redis
) -> None:
    known = "SELECT instance_name FROM evosaga.sightings ORDER BY instance_name"
    async with running_worker(house.settings):
        here = await resurrected(pool, redis, house.here)
        there = await resurrected(pool, redis, house.berlin, server="berlin")
        two = await made(pool, redis, server="berlin")
        house.berlin.drop(str(two.instance_name))
        await redis.set(routing_key.key("no-such-instance"), "{", ex=600)
    assert len((await run_once(house.keeper)).drifts) == 4
    house.berlin.arm("5xx_before", times=None)
    house.here.drop(str(here.instance_name))
    await redis.delete(routing_key.key("no-such-instance"))
    assert (await run_once(house.keeper)).drifts == []
    kept = [row["instance_name"] for row in await pool.fetch(known)]
    assert kept == sorted([str(there.instance_name), str(two.instance_name)])


async def test_of_an_organization_that_has_something_on_a_server_that_is_away_all_is_kept(
    house: House, pool: Pool, redis: Redis
) -> None:
    """Nothing is said of it meanwhile, so that nothing is seen is no news."""
    async with running_worker(house.settings):
        saga = await made(pool, redis, server="berlin")
    await pool.execute(
        "INSERT INTO evosaga.sightings (what, instance_name, organization_id, servers) "
        "VALUES ('duplicate', 'on-default', $1, '{default}')",
        saga.organization_id,
    )
    house.berlin.arm("5xx_before", times=None)
    await run_once(house.keeper)
    assert await count(pool, "SELECT count(*) FROM evosaga.sightings") == 1
    house.berlin.disarm()
    await eventually(lambda: house.services.servers["berlin"].state.state != "open")
    await run_once(house.keeper)
    assert await count(pool, "SELECT count(*) FROM evosaga.sightings") == 0


async def test_while_a_server_is_away_the_comparison_comes_again_after_growing_pauses(
    house: House, pool: Pool, redis: Redis
) -> None:
    """And what was seen once where one can look is looked at a second time as soon as ever."""
    house.berlin.arm("5xx_before", times=None)
    gate = house.keeper.gate
    everything = jobs_of(house.settings, pool, house.services, gate)[0]
    assert isinstance(everything, Job)
    chores = Scheduler(pool, "me", [everything])

    async def due() -> int:
        """Do it now; the seconds until it is due again."""
        await pool.execute(
            "INSERT INTO evosaga.chores (name, next_at) VALUES ('reconcile', now()) "
            "ON CONFLICT (name) DO UPDATE SET next_at = now()"
        )
        assert await chores.do(everything)
        query = "SELECT extract(epoch FROM next_at - now()) FROM evosaga.chores"
        return round(float(await pool.fetchval(query)))

    assert [await due() for _ in range(3)] == [60, 120, 240]
    assert [await due() for _ in range(4)] == [480, 960, 1920, 3600]
    await redis.set(routing_key.key("no-such-instance"), "{", ex=600)
    assert await due() == round(house.settings.quiet_seconds + 1)
    await redis.delete(routing_key.key("no-such-instance"))
    assert await due() == 3600, "the pauses go on where they were"
    house.berlin.disarm()
    await eventually(lambda: house.services.servers["berlin"].state.state != "open")
    assert await due() == 86400
    house.berlin.arm("5xx_before", times=None)
    assert await due() == 60


async def test_nothing_is_concluded_where_no_server_gives_a_list(house: House) -> None:
    for server in (house.here, house.berlin):
        server.arm("5xx_before", times=None)
    with pytest.raises(ObservationFailed, match=r"default: .* berlin: "):
        await find(house.keeper)
    assert (await run_once(house.keeper)).aborted


async def test_rows_on_a_server_that_is_not_configured_are_left_alone_and_told_of(
    house: House, pool: Pool, redis: Redis
) -> None:
    async with running_worker(house.settings):
        saga = await made(pool, redis, server="berlin")
    alone = replace(house.services, servers={"default": house.services.servers["default"]})
    seen = await find(replace(house.keeper, services=alone))
    assert seen.drifts == []
    assert "EVOSAGA_EVOLUTION_SERVERS" in seen.unseen["berlin"]
    checked = await monitor.run_once(replace(house.doctor, services=alone))
    assert checked.summary()["states"] == {"unknown": 1}
    (known,) = await integrations(pool, names=[str(saga.instance_name)])
    assert (await observe(alone.server(known.server), alone.keys, known)).state == "unknown"


async def test_a_namesake_on_another_server_is_never_taken_for_the_rows_instance(
    house: House, rows: Rows, pool: Pool
) -> None:
    house.here.put("clinic-sol", phone=PHONE)
    house.berlin.put("clinic-sol")
    await rows.insert("clinic-sol", number=PHONE)
    assert await found(house) == [("elsewhere", "clinic-sol")]
    house.here.drop("clinic-sol")
    assert await found(house) == [("elsewhere", "clinic-sol"), ("missing", "clinic-sol")]
    async with running_worker(house.settings):
        await healed(house.keeper)
    assert (await rows.of("clinic-sol"))["status"] == "disconnected"
    assert list(house.berlin.live()) == ["clinic-sol"], "it is not touched"


async def test_a_connected_phone_on_another_server_gets_its_row_again_with_the_server(
    house: House, pool: Pool, redis: Redis, rows: Rows
) -> None:
    async with running_worker(house.settings):
        saga = await made(pool, redis, server="berlin", channel="WHATSAPP-BAILEYS")
        name, organization = str(saga.instance_name), saga.organization_id
        assert organization
        before = await rows.of(name)
        house.berlin.pair(name, PHONE)
        await eventually(lambda: house.berlin.rows()[name].state == "open")
        await pool.execute("DELETE FROM healthcare.integrations")
        drifts = (await find(house.keeper, keep=Keep(organization))).drifts
        drift = next(one for one in drifts if one.what == "row_gone")
        assert drift.command
        assert drift.command.data["server"] == "berlin"
        asked = await house.keeper.gate.submit(
            Command(id="again", type=drift.command.type, data=dict(drift.command.data))
        )
        assert (await outcome(pool, str(asked.saga_id))).status == "completed"
        assert (await rows.of(name))["config"] == before["config"]
        gone = await outcome(pool, await publish(redis, delete(name)))
        assert gone.status == "completed"
    assert not house.berlin.rows()


async def test_the_command_line_shows_what_it_saw_and_says_what_it_did_not_see(
    house: House, evosaga: Evosaga, rows: Rows
) -> None:
    servers = f'{{"berlin": {{"url": "{house.berlin.url}", "api_key": "{BERLIN_KEY}"}}}}'
    verb = evosaga.having(EVOLUTION_SERVERS=servers)
    house.here.put("clinic-sol", phone=PHONE)
    await rows.insert("clinic-sol", number=PHONE)
    ran = await verb("reconcile")
    assert (ran.code, ran.out) == (0, "the stores agree\n")
    house.berlin.arm("5xx_before", times=None)
    ran = await verb("reconcile")
    assert (ran.code, ran.out) == (3, "what was seen agrees\n")
    assert "the Evolution server berlin was not looked at: " in ran.err
    ran = await verb("health", "--json")
    assert ran.code == 3
    assert ran.json["summary"]["not_looked_at"].startswith("berlin: ")
    assert [one["state"] for one in ran.json["integrations"]] == ["connected"]
    house.berlin.disarm()
    ran = await verb("doctor", "--json")
    told = {check["check"]: check["verdict"] for check in ran.json["checks"]}
    assert told["evolution berlin"] == told["evolution"] == "ok"
    assert BERLIN_KEY not in ran.out + ran.err
    await rows.insert("clinic-lua")
    await rows.pool.execute(
        'UPDATE healthcare.integrations SET config = config || \'{"server": "paris"}\' '
        "WHERE config ->> 'instance_name' = 'clinic-lua'"
    )
    ran = await verb("doctor", "--json")
    [told_of] = [check for check in ran.json["checks"] if check["check"] == "evolution paris"]
    assert told_of["verdict"] == "bad"
    assert "1 integrations and 0 open sagas" in told_of["said"]
    assert "EVOSAGA_EVOLUTION_SERVERS" in told_of["cure"]


async def test_the_command_line_creates_on_the_server_it_was_told(
    house: House, evosaga: Evosaga
) -> None:
    asked: tuple[str, ...] = (
        "create",
        "--organization-id",
        str(uuid4()),
        "--clinic-id",
        str(uuid4()),
    )
    asked += ("--name", "Clínica Sol", "--channel", "EVOLUTION", "--server")
    async with running_worker(house.settings):
        assert (await evosaga(*asked, "paris")).code == 1
        ran = await evosaga(*asked, "berlin", "--json")
    assert ran.code == 0
    assert len(house.berlin.rows()) == 1
    assert not house.here.rows()


# --- pure -------------------------------------------------------------------------------------


def listing(*names: str, server: str) -> OneList:
    told = {name: Instance(name, "open", "hash", server=server) for name in names}
    return OneList(told, dict.fromkeys(names, f"token on {server}"))


def row(name: str, server: str, **about: Any) -> Row:
    return Row(uuid4(), uuid4(), name, "connected", server=server, **about)


def test_each_name_is_where_its_row_says_or_where_it_is_found_first() -> None:
    lists = {
        "default": listing("a", "b", "c", server="default"),
        "berlin": listing("a", "b", "d", server="berlin"),
    }
    rows = [row("a", "default", enabled=False), row("a", "berlin"), row("c", "berlin")]
    one = merge(lists, rows)
    assert {name: i.server for name, i in one.instances.items()} == {
        "a": "berlin",  # the row in use counts
        "b": "default",
        "d": "berlin",
    }
    assert one.tokens["a"] == "token on berlin"
    assert one.elsewhere == {"a": "default", "b": "berlin", "c": "default"}


def test_a_strangers_namesakes_are_nobodys_business() -> None:
    lists = {"default": listing("x", server="default"), "berlin": listing("x", server="berlin")}
    one = merge(lists, [])
    assert reconcile_plan(Snapshot(instances=one.instances, elsewhere=one.elsewhere)) == []


def test_a_list_is_doubted_for_its_own_server_alone() -> None:
    here = [row(f"here-{n}", "default") for n in range(10)]
    there = [row(f"there-{n}", "berlin") for n in range(10)]
    shown = {r.instance_name: Instance(r.instance_name, "open", "h") for r in here}
    snapshot = Snapshot(instances=shown, rows=[*here, *there])
    assert implausibility(snapshot, "berlin")
    assert implausibility(snapshot) is None
    blinded = snapshot.without({"berlin": "it lied"})
    assert implausibility(blinded, "berlin") is None
    assert not [drift for drift in reconcile_plan(blinded) if drift.where.startswith("there")]


async def test_the_servers_are_checked_one_chore_each_and_summed_up(
    house: House, rows: Rows, pool: Pool
) -> None:
    house.here.put("clinic-sol", phone=PHONE)
    house.berlin.put("clinic-mar", phone=PHONE)
    await rows.insert("clinic-sol", number=PHONE)
    for name, server in (("clinic-mar", "berlin"), ("clinic-lua", "nowhere")):
        id_ = await rows.insert(name, number=PHONE)
        await pool.execute(
            "UPDATE healthcare.integrations SET config = config || jsonb_build_object("
            "'server', $2::text) WHERE id = $1",
            id_,
            server,
        )
    jobs = jobs_of(house.settings, pool, house.services, house.keeper.gate)
    [shared] = [job for job in jobs if isinstance(job, SharedJob)]
    [summed] = [job for job in jobs if isinstance(job, Job) and job.name == "health"]
    assert sorted(shared.parts) == ["berlin", "default"]
    every = [*map(shared.part, shared.parts), summed]
    for job in every:
        await pool.execute(
            "INSERT INTO evosaga.chores (name, next_at) VALUES ($1, now())", job.name
        )
        assert await Scheduler(pool, "me", [job]).do(job)

    async def told(name: str) -> dict[str, Any]:
        query = "SELECT last_result FROM evosaga.chores WHERE name = $1"
        found: dict[str, Any] = json.loads(await pool.fetchval(query, name))
        return found

    assert (await told("health/berlin"))["states"] == {"connected": 1}
    summary = await told("health")
    assert summary["states"] == {"connected": 2, "unknown": 1}
    assert (summary["integrations"], summary["aborted"]) == (3, None)
    assert summary["not_looked_at"].startswith("nowhere: ")
    assert await states(pool) == ["connected", "connected"]
