"""Evolution goes away, hangs or is set up wrongly: everything waits, and nothing is undone for it.

The waits of the breaker are shortened; that they are as long as they say is told in
``tests/whatsapp/evolution/test_circuit_breaker.py``.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from uuid import UUID

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from structlog.testing import capture_logs

import evosaga.sagas.whatsapp.evolution.circuit_breaker
import evosaga.sagas.whatsapp.evolution.client
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine import retries
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.definition import Admission, Saga, retryable
from evosaga.sagas.outcome import Done, Outcome
from evosaga.sagas.registry import discover, registry_of
from evosaga.sagas.whatsapp.services import Context
from tests.support.driving import contradictions, count, create, delete, outcome, publish
from tests.support.sampled import sampled
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "LONGEST_PAUSE", 1.0)
    monkeypatch.setattr(retries, "_HOLD_CAP", 1.0)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A lease that no slow moment of the machine ends: this is about Evolution alone."""
    return settings.model_copy(update={"lease_seconds": 10.0})


def alerts(logged: Sequence[Any]) -> list[str]:
    """What was logged about Evolution as a whole."""
    return [line["event"] for line in logged if line["event"].startswith("evolution ")]


async def attempts(pool: Pool) -> Counter[tuple[str, int]]:
    """How the failed attempts ended, and their numbers."""
    rows = await pool.fetch(
        "SELECT data ->> 'outcome' AS outcome, (data ->> 'attempt')::int AS attempt "
        "FROM evosaga.saga_events WHERE type IN ('step.failed', 'compensation.failed')"
    )
    return Counter((row["outcome"], row["attempt"]) for row in rows)


async def statuses(pool: Pool) -> dict[str, int]:
    rows = await pool.fetch("SELECT status, count(*) FROM evosaga.sagas GROUP BY status")
    return {row["status"]: row["count"] for row in rows}


async def held(pool: Pool, at_least: int) -> None:
    """Wait until so many sagas have been held once."""
    query = "SELECT count(DISTINCT saga_id) FROM evosaga.saga_events WHERE type = 'step.failed'"

    async def enough() -> bool:
        return await count(pool, query) >= at_least

    await eventually(enough, 60, message=f"{at_least} sagas to be held")


@contextlib.asynccontextmanager
async def down(evolution: SimulatedEvolution) -> AsyncIterator[None]:
    """Nobody listens meanwhile."""
    evolution._door._stop_listening()
    await evolution._door.cut()
    yield
    await evolution._door._listen()


async def all_over(pool: Pool, ids: Sequence[str], timeout: float = 60) -> None:
    for id_ in ids:
        saga = await outcome(pool, id_, timeout)
        assert saga.status == "completed", saga


@pytest.mark.fault("c1")
async def test_while_evolution_is_down_a_hundred_creates_burn_no_attempt_and_then_go_on(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    with capture_logs() as logged:
        async with running_worker(settings):
            async with down(evolution):
                ids = [await publish(redis, create()) for _ in range(100)]
                await held(pool, 100)
                assert await statuses(pool) == {"running": 100}
            await all_over(pool, ids)
    assert {outcome for outcome, _ in await attempts(pool)} == {"held"}
    assert {number for _, number in await attempts(pool)} == {1}
    assert len(evolution.journal.requests("create")) == len(evolution.rows()) == 100
    assert await contradictions(pool) == []
    assert alerts(logged) == ["evolution unavailable", "evolution is back"], (
        "one alert, not a hundred"
    )


@pytest.mark.fault("c10")
@pytest.mark.parametrize("mode", sampled(["401", "licence", "redirect"], keep=["401"]))
async def test_a_wrong_set_up_is_one_alert_and_a_hold_and_not_a_compensation(
    mode: str, settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    given = settings.model_copy(update={"evolution_concurrency": 16})
    async with running_worker(given) as worker:
        made = [await publish(redis, create()) for _ in range(5)]
        await all_over(pool, made)
        asked_before = len(evolution.journal.requests("create"))
        with capture_logs() as logged:
            evolution.arm(mode, times=None)
            ids = [await publish(redis, create()) for _ in range(40)]
            await held(pool, 40)
            state = worker.services.servers["default"].state
            assert state.state in ("open", "half-open")
            asked = len(evolution.journal.requests("create")) - asked_before
            assert asked < 32, f"{asked} creates were sent to one that refuses them all"
            assert await statuses(pool) == {"completed": 5, "running": 40}
            assert evolution.journal.requests("delete") == []
            evolution.disarm()
            await all_over(pool, ids)
        assert {outcome for outcome, _ in await attempts(pool)} == {"held"}
        assert len(evolution.rows()) == 45
        assert alerts(logged) == ["evolution misconfigured", "evolution is back"]


@pytest.mark.fault("c2")
async def test_a_server_that_hangs_costs_only_those_an_attempt_that_it_hangs_on(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """What was sent is in doubt, costs an attempt, and is looked for; the others just wait."""
    given = settings.model_copy(update={"evolution_timeout": 0.5, "evolution_concurrency": 8})
    evolution.arm("hang_before", times=None)
    async with running_worker(given):
        ids = [await publish(redis, create()) for _ in range(50)]
        await held(pool, 50)
        evolution.disarm()
        await all_over(pool, ids)
    told = await attempts(pool)
    assert {outcome for outcome, _ in told} <= {"held", "unknown"}
    burned = sum(many for (outcome, _), many in told.items() if outcome == "unknown")
    assert burned <= evolution.fired["hang_before"] < 50
    assert await statuses(pool) == {"completed": 50}
    applied = [entry for entry in evolution.journal if entry.applied == "created"]
    assert len(applied) == len(evolution.rows()) == 50


async def test_deletes_wait_for_evolution_as_well_and_none_is_parked(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        made = [await publish(redis, create()) for _ in range(20)]
        await all_over(pool, made)
        evolution.arm("5xx_before", times=None, status=502)
        ids = [await publish(redis, delete(name)) for name in evolution.rows()]
        await held(pool, 20)
        evolution.disarm()
        await all_over(pool, ids)
    assert {outcome for outcome, _ in await attempts(pool)} == {"held"}
    assert not evolution.rows()


# -- a bulkhead


class Note(BaseModel):
    text: str


async def _admit(connection: Any, services: Any, notes: Sequence[tuple[UUID, Note]]) -> list[Any]:
    return [Admission(f"note/{id_}") for id_, _ in notes]


async def _write(ctx: Context) -> Outcome:
    return Done()


NOTE: Final = Saga("note", 1, "note.write", Note, _admit, (retryable("write", do=_write),))


@pytest.mark.fault("o6", "l10")
async def test_a_hanging_evolution_does_not_slow_a_saga_that_does_not_use_it(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """More sagas want Evolution than the worker has room for, and each call takes a minute."""
    given = settings.model_copy(update={"evolution_timeout": 60.0, "capacity": 12})
    known = registry_of([*discover().versions.values(), NOTE])
    evolution.arm("hang_before", times=None)
    async with running_worker(given, known) as worker:
        ids = [await publish(redis, create()) for _ in range(18)]
        await eventually(lambda: len(evolution.journal.entries) >= 6)
        for n in range(3):
            note = {"id": f"note-{n}", "type": "note.write", "data": {"text": "hello"}}
            saga = await outcome(pool, await publish(redis, note), 25)
            assert saga.status == "completed"
        assert worker.services.servers["default"].state.state == "closed", "it still hangs"
        assert len(evolution.journal.requests("create")) == 6, "half of the room, and no more"
        evolution.disarm()
        await evolution.restart()
        await all_over(pool, ids, 60)
    assert len(evolution.rows()) == 18
