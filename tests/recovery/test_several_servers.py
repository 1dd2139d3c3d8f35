"""Several Evolution servers: each has a breaker and a bulkhead, and a saga stays on its own.

The waits of the breaker are shortened, as in ``test_evolution_outages``.
"""

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.sagas.whatsapp.evolution.circuit_breaker
import evosaga.sagas.whatsapp.evolution.unconfigured
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.evolution_servers import read_servers
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine import retries
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, find_saga, list_sagas
from evosaga.orchestrator.queries.why import Diagnosis, why_of
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import SECRET
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import contradictions, count, create, delete, outcome, publish, story
from tests.support.sampled import sampled
from tests.support.waiting import eventually
from tests.whatsapp.test_late_landing import IMPATIENT


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "LONGEST_PAUSE", 1.0)
    monkeypatch.setattr(retries, "_HOLD_CAP", 1.0)
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.unconfigured, "_LATER", 0.3)


@pytest.fixture
async def berlin() -> AsyncIterator[SimulatedEvolution]:
    """A second server, with a key of its own."""
    async with SimulatedEvolution(api_key="the-key-of-berlin", pace=0.05) as server:
        yield server


@pytest.fixture
def alone(settings: Settings) -> Settings:
    """Only the default server, and a lease that no slow moment of the machine ends."""
    return settings.model_copy(update={"lease_seconds": 10.0})


@pytest.fixture
def both(alone: Settings, berlin: SimulatedEvolution) -> Settings:
    servers = read_servers({"berlin": {"url": berlin.url, "api_key": "the-key-of-berlin"}})
    return alone.model_copy(update={"evolution_servers": servers})


async def held(pool: Pool, id_: str, code: str) -> None:
    """Wait until the saga has been held for that reason, twice."""
    query = "SELECT coalesce(max(holds), 0) FROM evosaga.sagas WHERE saga_id = $1 AND code = $2"

    async def so() -> bool:
        return await count(pool, query, uuid.UUID(id_), code) >= 2

    await eventually(so, 30, message=f"{id_} to be held: {code}")


async def why_says(
    pool: Pool, id_: str, servers: Any, *details: str, headline: str = "", cure: str = ""
) -> None:
    """Wait until ``why`` says all that: not while the saga is just being tried."""
    heard: list[Diagnosis] = []

    async def so() -> bool:
        view = await find_saga(pool, id_)
        assert view
        told = await why_of(pool, discover(), view, explainer(servers))
        heard[:] = [told]
        named = all(any(words in one for one in told.details) for words in details)
        return named and headline in told.headline and cure in (told.cure or "")

    await eventually(so, message=f"why to say {details} {headline} {cure}, now {heard}")


async def prints(evosaga: Evosaga, *arguments: str, words: tuple[str, ...]) -> None:
    """Wait until the command line prints all that, for the same reason."""
    heard: list[str] = []

    async def so() -> bool:
        heard[:] = [" ".join((await evosaga(*arguments)).out.split())]
        return all(each in heard[0] for each in words)

    await eventually(so, message=f"{arguments} to print {words}, now {heard}")


async def pinned(pool: Pool, id_: str) -> Any:
    """What is recorded of the saga's server."""
    return await pool.fetchval(
        "SELECT data -> 'facts' ->> 'server' FROM evosaga.saga_events "
        "WHERE saga_id = $1 AND sequence = 0",
        uuid.UUID(id_),
    )


def names(server: SimulatedEvolution) -> set[str]:
    return {*server.rows(), *server.live()}


async def test_an_integration_lives_and_dies_on_the_server_that_was_chosen(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    async with running_worker(both):
        there = await outcome(pool, id_ := await publish(redis, create(server="berlin")))
        here = await outcome(pool, other := await publish(redis, create()))
        assert (there.status, here.status) == ("completed", "completed")
        assert names(berlin) == {there.instance_name}
        assert names(evolution) == {here.instance_name}
        assert [await pinned(pool, one) for one in (id_, other)] == ["berlin", "default"]
        configs = await pool.fetch("SELECT config FROM healthcare.integrations ORDER BY created_at")
        told = [json.loads(row["config"]).get("server") for row in configs]
        assert told == ["berlin", None], "the default one is not written down"
        for name in (there.instance_name, here.instance_name):
            assert name
            gone = await outcome(pool, id_ := await publish(redis, delete(name)))
            assert gone.status == "completed"
    assert names(berlin) == names(evolution) == set()
    assert len(berlin.journal.requests("delete")) == len(evolution.journal.requests("delete")) == 1
    assert await contradictions(pool) == []


async def test_a_delete_that_stops_a_create_finds_its_server_before_there_is_a_row(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    berlin.arm("slow_after", operation="create", seconds=1.0)
    async with running_worker(both):
        command = create(server="berlin", instance_name="clinic-of-berlin")
        made = await publish(redis, command)
        await eventually(lambda: "clinic-of-berlin" in berlin.rows())
        ended = await publish(redis, delete("clinic-of-berlin"))
        assert (await outcome(pool, ended, 30)).status == "completed"
        await outcome(pool, made)
    assert await pinned(pool, ended) == "berlin"
    assert names(berlin) == set()
    assert evolution.journal.requests() == []


async def test_a_name_has_one_owner_in_all_servers_together(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    """The routing key is found by the name alone."""
    async with running_worker(both):
        first = await publish(redis, create(server="berlin", instance_name="clinic-sol"))
        assert (await outcome(pool, first)).status == "completed"
        second = await outcome(pool, await publish(redis, create(instance_name="clinic-sol")))
        assert (second.status, second.code) == ("rejected", "name_taken")
    assert names(evolution) == set()


async def test_an_unknown_server_is_refused_before_anything_is_touched(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    async with running_worker(both):
        saga = await outcome(pool, await publish(redis, create(server="paris")))
    assert (saga.status, saga.code) == ("rejected", "unknown_server")
    assert saga.message == "EVOSAGA_EVOLUTION_SERVERS has no Evolution server named paris"
    assert evolution.journal.requests() == berlin.journal.requests() == []
    assert await count(pool, "SELECT count(*) FROM healthcare.integrations") == 0


# --- bulkheads --------------------------------------------------------------------------------


@pytest.mark.fault("o6", "l10")
async def test_one_hanging_server_never_slows_the_sagas_of_another(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    """More sagas want Berlin than the worker has room for; its calls never end."""
    given = both.model_copy(update={"evolution_timeout": 60.0, "capacity": 12})
    waiting = "SELECT count(*) FROM evosaga.sagas WHERE status = 'running'"
    berlin.arm("hang_before", times=None)
    async with running_worker(given) as worker:
        stuck = [await publish(redis, create(server="berlin")) for _ in range(18)]
        await eventually(lambda: len(berlin.journal.entries) >= 3, 30)
        prompt = [await publish(redis, create()) for _ in range(9)]
        for id_ in prompt:
            assert (await outcome(pool, id_, 30)).status == "completed"
        assert await count(pool, waiting) == 18, "all of Berlin's wait while they were done"
        assert len(evolution.rows()) == 9
        assert len(berlin.journal.requests("create")) == 3, "a quarter of the room, and no more"
        states = {name: api.state.state for name, api in worker.services.servers.items()}
        assert states == {"default": "closed", "berlin": "closed"}, "it still hangs"
        berlin.disarm()
        await berlin.restart()
        for id_ in stuck:
            assert (await outcome(pool, id_, 60)).status == "completed"
    assert len(berlin.rows()) == 18


async def test_each_server_has_a_breaker_of_its_own(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    berlin.arm("5xx_before", times=None, status=502)
    async with running_worker(both) as worker:
        servers = worker.services.servers
        stuck = [await publish(redis, create(server="berlin")) for _ in range(10)]
        await eventually(lambda: servers["berlin"].state.state == "open", 30)
        for _ in range(5):
            assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        assert servers["berlin"].state.state != "closed"
        assert servers["default"].state.state == "closed"
        await held(pool, stuck[-1], "evolution_unavailable")
        await why_says(pool, stuck[-1], servers, "The Evolution server berlin has been in trouble")
        berlin.disarm()
        for id_ in stuck:
            assert (await outcome(pool, id_, 30)).status == "completed"


@pytest.mark.parametrize("away", sampled(["berlin", "default"], keep=["berlin"]))
async def test_a_saga_that_is_held_says_which_of_the_servers_it_waits_for(
    away: str,
    both: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    berlin: Any,
    tmp_path: Path,
) -> None:
    evosaga = commandline(tmp_path, both)
    (berlin if away == "berlin" else evolution).arm("5xx_before", times=None, status=502)
    async with running_worker(both) as worker:
        stuck = await publish(redis, create(server=away))
        for _ in range(7):
            await publish(redis, create(server=away))
        await held(pool, stuck, "evolution_unavailable")
        servers = worker.services.servers
        await eventually(lambda: servers[away].state.state == "open", 30)
        view = await find_saga(pool, stuck)
        assert view
        assert f"(server {away})" in str(view.message)
        trouble = f"The Evolution server {away} has been in trouble"
        await why_says(pool, stuck, servers, trouble, headline=f"(server {away})")
        for verb in (("why", stuck), ("status", stuck), ("list",)):
            await prints(evosaga, *verb, words=(f"(server {away})",))


async def test_with_one_server_none_is_named(
    alone: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", times=None, status=502)
    async with running_worker(alone):
        stuck = await publish(redis, create())
        await held(pool, stuck, "evolution_unavailable")
        view = await find_saga(pool, stuck)
    assert view
    assert "(server" not in str(view.message)


# --- the configuration changes ----------------------------------------------------------------


@pytest.mark.fault("c19")
async def test_a_saga_whose_server_is_no_longer_configured_is_held_until_it_is_again(
    alone: Settings,
    both: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    berlin: Any,
) -> None:
    berlin.arm("5xx_before", times=None, status=502)
    async with running_worker(both):
        id_ = await publish(redis, create(server="berlin", channel="WHATSAPP-BAILEYS"))
        await held(pool, id_, "evolution_unavailable")
    berlin.disarm()
    async with running_worker(alone) as worker:
        await held(pool, id_, "server_unknown")
        view = await find_saga(pool, id_)
        assert view is not None
        assert view.status == "running"
        await why_says(
            *(pool, id_, worker.services.servers),
            headline="no Evolution server named berlin",
            cure="EVOSAGA_EVOLUTION_SERVERS",
        )
    assert evolution.journal.requests() == [], "it is not moved to another server"
    assert berlin.journal.requests("create") != []
    async with running_worker(both):
        saga = await outcome(pool, id_, 30)
        assert saga.status == "completed"
        assert names(berlin) == {saga.instance_name}
    assert not [line for line in await story(pool, saga) if line.startswith("compensation")]


@pytest.mark.fault("c19")
async def test_the_deadline_of_a_create_runs_on_and_its_undo_waits_for_the_server(
    alone: Settings,
    both: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    berlin: Any,
    tmp_path: Path,
) -> None:
    """Only a look there tells what became of the create; an empty server says: nothing."""
    berlin.arm("5xx_before", times=None, status=502)
    command = create(server="berlin")
    organization = command["data"]["organization_id"]
    async with running_worker(both.model_copy(update={"create_deadline": 3.0})):
        id_ = await publish(redis, command)
        await held(pool, id_, "evolution_unavailable")
    evosaga = commandline(tmp_path, alone)
    async with running_worker(alone):
        await held(pool, id_, "server_unknown")

        async def undoing() -> bool:
            view = await find_saga(pool, id_)
            return bool(view and (view.status, view.code) == ("compensating", "server_unknown"))

        await eventually(undoing, 20)
        words = (
            "no Evolution server named berlin",
            "only a look there tells what became of it, so an undo waits",
            "it was not done within 3 s",
            "with an empty one under its name",
        )
        await prints(evosaga, "why", id_, words=words)
        [line] = [one for one in (await evosaga("doctor")).lines if "evolution berlin" in one]
        assert "1 open sagas are on it, of which 1 wait to be undone" in line
        second = await outcome(pool, await publish(redis, create(organization_id=organization)))
        assert (second.status, second.code) == ("rejected", "in_progress")
    berlin.disarm()
    async with running_worker(both):  # it is empty
        saga = await outcome(pool, id_, 30)
        assert (saga.status, saga.code) == ("compensated", "deadline_exceeded")
        third = await outcome(pool, await publish(redis, create(organization_id=organization)))
        assert third.status == "completed"


@pytest.mark.fault("c19")
async def test_a_create_of_which_nothing_was_sent_is_rolled_back_without_its_server(
    alone: Settings,
    both: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    berlin: Any,
) -> None:
    berlin.arm("429", operation="create", times=None, retry_after=0.3)
    async with running_worker(both.model_copy(update={"create_deadline": 3.0})):
        id_ = await publish(redis, create(server="berlin"))
        await held(pool, id_, "evolution_busy")
    async with running_worker(alone) as worker:
        await held(pool, id_, "server_unknown")
        await why_says(pool, id_, worker.services.servers, "Nothing was sent to that server")
        saga = await outcome(pool, id_, 20)
    assert (saga.status, saga.code) == ("compensated", "deadline_exceeded")
    assert names(berlin) == set()


@pytest.mark.fault("c19")
async def test_a_delete_waits_as_well_and_believes_nothing_to_be_gone(
    alone: Settings,
    both: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    berlin: Any,
) -> None:
    async with running_worker(both):
        made = await outcome(pool, await publish(redis, create(server="berlin")))
    name = str(made.instance_name)
    async with running_worker(alone):
        id_ = await publish(redis, delete(name))
        await held(pool, id_, "server_unknown")
        assert await count(pool, "SELECT count(*) FROM healthcare.integrations") == 1
    assert names(berlin) == {name}
    async with running_worker(both):
        assert (await outcome(pool, id_, 30)).status == "completed"
    assert names(berlin) == set()
    assert evolution.journal.requests() == []


@pytest.mark.fault("m8")
async def test_a_saga_of_a_release_that_knew_one_server_goes_on_there_and_stays_as_stored(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    id_, organization = uuid.uuid4(), uuid.uuid4()
    stored = {
        "saga": "create-integration",
        "version": 1,
        "command": "integration.create",
        "command_id": str(id_),
        "command_hash": "h",
        "business_key": f"whatsapp/evolution/{organization}",
        "organization_id": str(organization),
        "instance_name": f"wa-{id_}",
        "input": create(organization_id=str(organization))["data"],
        "facts": {
            "instance_name": f"wa-{id_}",
            "created_by": str(id_),
            "key_id": KeyRing([SECRET]).current,
        },
    }
    await pool.execute(
        "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, organization_id, "
        "instance_name, command_id, command_hash, correlation_id, next_sequence, next_at) "
        "VALUES ($1, 'create-integration', 1, 'running', $2, $3, $4, $5, 'h', $5, 1, now())",
        *(id_, stored["business_key"], organization, stored["instance_name"], str(id_)),
    )
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "VALUES ($1, 0, 'saga.started', $2::jsonb, $3)",
        *(id_, json.dumps(stored), str(id_)),
    )
    async with running_worker(both):
        ended = await publish(redis, delete(f"wa-{id_}"))
        await outcome(pool, str(id_), 30)
        assert (await outcome(pool, ended, 30)).status == "completed"
    assert await pinned(pool, ended) == "default"
    assert await pinned(pool, str(id_)) is None, "what is stored is not touched"
    assert names(evolution) == set()
    assert berlin.journal.requests() == []


async def test_what_lands_late_is_looked_for_and_removed_on_its_own_server(
    both: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, berlin: Any
) -> None:
    berlin.arm("late", operation="create", seconds=1.2, reply="cut")
    patient = both.model_copy(update={"watch_after": (0.5, 2.0, 2.5, 3.0)})
    async with running_worker(patient, IMPATIENT):
        saga = await outcome(pool, await publish(redis, create(server="berlin")))
        assert saga.status == "compensated"
        await eventually(lambda: bool(berlin.live()), message="the instance to land")
        await eventually(lambda: not berlin.rows(), message="it to be removed late")
        watch = (await list_sagas(pool, Filter(saga="watch-instance")))[0][0]
        assert await pinned(pool, str(watch.saga_id)) == "berlin"
    assert evolution.journal.requests() == []


async def test_who_is_refused_by_the_breaker_of_one_server_makes_room_for_the_others(
    both: Settings, pool: Pool, redis: Redis, berlin: Any
) -> None:
    """What the breaker says comes at once, so no share of the calls keeps these in bounds."""
    await berlin.stop()
    small = both.model_copy(update={"capacity": 20})

    async def nobodys() -> bool:
        query = "SELECT count(*) FROM evosaga.sagas WHERE owner IS NULL AND status = 'running'"
        return await count(pool, query) >= 25

    async with running_worker(small):
        for _ in range(40):
            await publish(redis, create(server="berlin"))
        await eventually(nobodys, 4)
        here = await outcome(pool, await publish(redis, create()))
        assert here.status == "completed"
