"""The event log: append-only, one winner a sequence, many sagas a commit, and never a guess."""

import asyncio
import json
import random
import uuid
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

import evosaga.events.event_log
from evosaga import migrations
from evosaga.events.append import Append, Appended, StatusRow, TransactionalEffect, Written
from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog, VersionConflict
from evosaga.events.model import SagaEvent, SagaStarted, StepFailed, StepStarted, StepSucceeded
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.sagas.outcome import Done, Rejected
from tests.support.appenders import new_sagas
from tests.support.driving import running_log
from tests.support.waiting import eventually

RUNNING = StatusRow("running", step="evolution", attempt=1, owner="w", due_in=5.0)


def started(saga_id: UUID) -> SagaStarted:
    return SagaStarted(
        saga="create-integration",
        version=1,
        command="integration.create",
        command_id=str(saga_id),
        command_hash="h",
        business_key=str(saga_id),
        input={},
        facts={"server": "default"},
    )


def intent(attempt: int, worker: str = "w") -> StepStarted:
    return StepStarted(step="evolution", attempt=attempt, worker=worker, lease_seconds=5)


def append(saga_id: UUID, expected: int, events: Sequence[SagaEvent], **more: Any) -> Append[None]:
    row = more.pop("row", RUNNING)
    return Append(saga_id, expected, events, row, str(saga_id), None, None, **more)


async def said(work: Any) -> Appended[None] | BaseException:
    try:
        answer: Appended[None] = await work
    except Exception as error:
        return error
    return answer


async def sequences(pool: Pool, saga_id: UUID) -> list[int]:
    rows = await pool.fetch(
        "SELECT sequence FROM evosaga.saga_events WHERE saga_id = $1 ORDER BY sequence", saga_id
    )
    return [row["sequence"] for row in rows]


async def test_what_was_appended_is_read_back_with_its_place_and_time(
    log: EventLog, pool: Pool
) -> None:
    [saga] = await new_sagas(pool)
    first = await log.append(append(saga, 0, [started(saga), intent(1)]))
    second = await log.append(append(saga, 2, [StepSucceeded(step="evolution", attempt=1)]))
    history = await log.read(saga)
    assert [r.sequence for r in history] == [0, 1, 2]
    assert [r.event for r in history] == [*first.events, *second.events]
    assert [r.recorded_at for r in history] == [*[first.recorded_at] * 2, second.recorded_at]
    row = await pool.fetchrow("SELECT * FROM evosaga.sagas WHERE saga_id = $1", saga)
    assert row is not None
    assert row["next_sequence"] == 3
    assert row["updated_at"] == second.recorded_at
    assert (row["next_at"] - second.recorded_at).total_seconds() == 5.0
    assert await log.read(uuid.uuid4()) == []


async def test_a_conflict_fails_its_own_saga_alone(log: EventLog, pool: Pool) -> None:
    a, b, c = await new_sagas(pool, 3)
    await log.append(append(b, 0, [started(b)]))
    answers = await asyncio.gather(
        *(said(log.append(append(saga, 0, [started(saga), intent(1)]))) for saga in (a, b, c))
    )
    assert [type(answer) for answer in answers] == [Appended, VersionConflict, Appended]
    assert await sequences(pool, b) == [0]
    assert await sequences(pool, a) == await sequences(pool, c) == [0, 1]


async def test_of_many_appends_at_one_sequence_one_wins_whoever_writes(
    log: EventLog, pool: Pool
) -> None:
    [saga] = await new_sagas(pool)
    async with running_log(pool) as another:
        answers = await asyncio.gather(
            *(
                said(writer.append(append(saga, 0, [started(saga), intent(1, f"{i}")])))
                for i in range(10)
                for writer in (log, another)
            )
        )
    assert sorted(type(a).__name__ for a in answers) == ["Appended"] + ["VersionConflict"] * 19
    [winner] = [a for a in answers if isinstance(a, Appended)]
    assert [r.event for r in await log.read(saga)] == winner.events


async def test_two_appends_of_one_saga_that_wait_together_are_written_in_their_order(
    log: EventLog, pool: Pool
) -> None:
    [saga] = await new_sagas(pool)
    answers = await asyncio.gather(
        *(said(log.append(append(saga, i, [intent(i + 1)]))) for i in range(5))
    )
    assert all(isinstance(answer, Appended) for answer in answers)
    assert [r.event for r in await log.read(saga)] == [intent(i + 1) for i in range(5)]


async def test_appends_that_wait_share_a_commit(log: EventLog, pool: Pool) -> None:
    sagas = await new_sagas(pool, 100)
    await asyncio.gather(*(log.append(append(saga, 0, [started(saga)])) for saga in sagas))
    transactions = await pool.fetchval("SELECT count(DISTINCT xmin::text) FROM evosaga.saga_events")
    assert transactions <= 3  # the first alone, or with all that were there; the rest together


async def test_a_bad_row_fails_alone_and_its_neighbours_commit(log: EventLog, pool: Pool) -> None:
    """Whether Postgres refuses it or the driver: neither is an outage that could be waited out."""
    good = await new_sagas(pool, 3)
    nul, status, surrogate, number = await new_sagas(pool, 4)
    events = {
        nul: StepFailed(step="s", attempt=1, outcome="rejected", code="c", message="NUL \0"),
    }
    rows = {
        status: StatusRow("no such status"),
        surrogate: StatusRow("running", message="\ud800"),
        number: StatusRow("running", attempt=2**40),
    }
    order = [good[0], nul, status, good[1], surrogate, number, good[2]]
    appends = [append(s, 0, [events.get(s, started(s))], row=rows.get(s, RUNNING)) for s in order]
    answers = await asyncio.wait_for(asyncio.gather(*(said(log.append(a)) for a in appends)), 5)
    told = dict(zip(order, answers, strict=True))
    assert isinstance(told[status], asyncpg.CheckViolationError)
    assert all(isinstance(told[saga], asyncpg.DataError) for saga in (nul, surrogate, number))
    for saga in order:
        committed = await sequences(pool, saga)
        assert committed == ([0] if isinstance(told[saga], Appended) else []), told[saga]
        assert isinstance(told[saga], Appended) == (saga in good)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE evosaga.saga_events SET data = '{}'",
        "UPDATE evosaga.saga_events SET recorded_at = now()",
        "DELETE FROM evosaga.saga_events",
        "TRUNCATE evosaga.saga_events",
        "SET LOCAL evosaga.archiving = 'on'; UPDATE evosaga.saga_events SET type = 'x'",
        "SET LOCAL evosaga.archiving = 'on'; TRUNCATE evosaga.saga_events",
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "SELECT saga_id, sequence, type, data, correlation_id FROM evosaga.saga_events "
        "ON CONFLICT (saga_id, sequence) DO UPDATE SET type = 'x'",
    ],
)
async def test_the_database_refuses_to_change_history(
    log: EventLog, pool: Pool, change: str
) -> None:
    [saga] = await new_sagas(pool)
    await log.append(append(saga, 0, [started(saga)]))
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(change)
    assert [r.event for r in await log.read(saga)] == [started(saga)]


async def test_archiving_may_delete_and_ends_with_its_transaction(
    log: EventLog, pool: Pool
) -> None:
    a, b = await new_sagas(pool, 2)
    for saga in (a, b):
        await log.append(append(saga, 0, [started(saga)]))
    async with pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute("SET LOCAL evosaga.archiving = 'on'")
            await connection.execute("DELETE FROM evosaga.saga_events WHERE saga_id = $1", a)
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute("DELETE FROM evosaga.saga_events WHERE saga_id = $1", b)
    assert await sequences(pool, a) == []
    assert await sequences(pool, b) == [0]


# -- effects that join the commit


def joined(saga: UUID, run: Any, organization: UUID, expected: int = 1) -> Append[None]:
    def then(outcome: Done | Rejected) -> Written[None]:
        if isinstance(outcome, Done):
            return Written([StepSucceeded(step="postgres", attempt=1)], StatusRow("running"), None)
        failed = StepFailed(
            step="postgres", attempt=1, outcome="rejected", code=outcome.code, message="no"
        )
        return Written([failed], StatusRow("compensating", code=outcome.code), None)

    step = StepStarted(step="postgres", attempt=1, worker="w", lease_seconds=0)
    return append(saga, expected, [step], join=TransactionalEffect(run, (saga, organization), then))


async def save(connection: Any, contexts: Sequence[tuple[UUID, UUID]]) -> list[Done | Rejected]:
    rows = await connection.fetch(
        "INSERT INTO healthcare.integrations (id, organization_id) "
        "SELECT * FROM unnest($1::uuid[], $2::uuid[]) ON CONFLICT DO NOTHING RETURNING id",
        [saga for saga, _ in contexts],
        [organization for _, organization in contexts],
    )
    ids = {row["id"] for row in rows}
    return [Done() if saga in ids else Rejected("exists", "") for saga, _ in contexts]


async def test_a_joined_effect_and_its_event_are_one(log: EventLog, pool: Pool) -> None:
    """The neighbour that loses its sequence has no effect, the one that is refused says so."""
    winner, refused, late = await new_sagas(pool, 3)
    taken = uuid.uuid4()
    await pool.execute("INSERT INTO healthcare.integrations (organization_id) VALUES ($1)", taken)
    for saga in (winner, refused, late):
        await log.append(append(saga, 0, [started(saga)]))
    await log.append(append(late, 1, [intent(1)]))
    answers = await asyncio.gather(
        said(log.append(joined(winner, save, uuid.uuid4()))),
        said(log.append(joined(refused, save, taken))),
        said(log.append(joined(late, save, uuid.uuid4()))),
    )
    assert [type(a) for a in answers] == [Appended, Appended, VersionConflict]
    types = [[r.event.type for r in await log.read(s)][1:] for s in (winner, refused, late)]
    assert types[0] == ["step.started", "step.succeeded"]
    assert types[1] == ["step.started", "step.failed"]
    assert types[2] == ["step.started"]
    rows = await pool.fetch(
        "SELECT id FROM healthcare.integrations WHERE organization_id <> $1", taken
    )
    assert [row["id"] for row in rows] == [winner]
    status = await pool.fetchval("SELECT status FROM evosaga.sagas WHERE saga_id = $1", refused)
    assert status == "compensating"


async def test_a_joined_effect_that_raises_leaves_nothing_of_it_and_its_neighbours_alone(
    log: EventLog, pool: Pool
) -> None:
    async def save_then_raise(connection: Any, contexts: Sequence[Any]) -> list[Done | Rejected]:
        await save(connection, contexts)
        raise RuntimeError("a bug")

    good, bad = await new_sagas(pool, 2)
    for saga in (good, bad):
        await log.append(append(saga, 0, [started(saga)]))
    answers = await asyncio.gather(
        said(log.append(joined(bad, save_then_raise, uuid.uuid4()))),
        said(log.append(joined(good, save, uuid.uuid4()))),
    )
    assert [type(a) for a in answers] == [RuntimeError, Appended]
    assert await sequences(pool, bad) == [0]
    assert [r["id"] for r in await pool.fetch("SELECT id FROM healthcare.integrations")] == [good]


# -- when the connection breaks


@pytest.mark.fault("r3", "e2")
async def test_a_commit_whose_backend_is_killed_is_told_truly(
    log: EventLog, pool: Pool, database_url: str
) -> None:
    """Whatever the moment, ``append`` answers with what is in the log; nothing is written twice.

    Kills are counted in appends, not in seconds, so a slow machine is struck no harder.
    """
    sagas = await new_sagas(pool, 12)
    orders = {saga: uuid.uuid4() for saga in sagas}
    rng, appends, killed = random.Random(7), asyncio.Semaphore(0), 0

    async def live(saga: UUID) -> None:
        """A saga that appends, and goes on only when told that it may."""
        await log.append(append(saga, 0, [started(saga)]))
        await log.append(joined(saga, save, orders[saga]))
        for i in range(3, 120):
            appended = await log.append(append(saga, i, [intent(i)]))
            assert appended.events == [intent(i)]
            appends.release()

    async def kill() -> None:
        nonlocal killed
        admin = await asyncpg.connect(database_url)
        try:
            while True:
                killed += await admin.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                for _ in range(rng.randint(15, 60)):
                    await appends.acquire()
        finally:
            await admin.close()

    killer = asyncio.create_task(kill())
    try:
        await asyncio.gather(*map(live, sagas))
    finally:
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
    assert killed >= 20
    await pool.expire_connections()  # the last kill may have struck those that lie idle
    for saga in sagas:
        assert await sequences(pool, saga) == list(range(120))
    rows = await pool.fetch("SELECT id, organization_id FROM healthcare.integrations")
    assert {r["id"]: r["organization_id"] for r in rows} == orders
    behind = await pool.fetchval("SELECT count(*) FROM evosaga.sagas WHERE next_sequence <> 120")
    assert behind == 0


async def test_a_lost_reply_of_somebody_elses_append_is_still_a_conflict(
    log: EventLog, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In doubt, only the very events that were to be appended are taken for one's own."""
    [saga] = await new_sagas(pool)
    await log.append(append(saga, 0, [started(saga)]))
    real, failures = evosaga.events.event_log._write, iter([True])

    async def commit_then_lose(connection: Any, batch: Any, doubtful: bool) -> Any:
        if next(failures, False):
            async with running_log(pool) as another:
                await another.append(append(saga, 1, [intent(1, "another")]))
            raise ConnectionResetError
        return await real(connection, batch, doubtful)

    monkeypatch.setattr(evosaga.events.event_log, "_write", commit_then_lose)
    with pytest.raises(VersionConflict):
        await log.append(append(saga, 1, [intent(1, "me")]))
    assert [r.event for r in await log.read(saga)] == [started(saga), intent(1, "another")]


@pytest.mark.fault("e1")
async def test_appends_wait_while_postgres_is_killed_and_started_again(
    own_postgres: LocalServer,
) -> None:
    await migrations.migrate(own_postgres.url)
    pool = await open_pool(own_postgres.url)
    sagas = await new_sagas(pool, 40)
    done, each = 0, 100  # so many that they are at it for longer than a kill takes

    async def live(log: EventLog, saga: UUID) -> None:
        nonlocal done
        for i in range(each):
            await log.append(append(saga, i, [intent(i + 1)]))
            done += 1

    async with running_log(pool) as log:
        lives = asyncio.gather(*(live(log, saga) for saga in sagas))
        await eventually(lambda: done >= 40)
        await asyncio.to_thread(own_postgres.kill)
        waiting = asyncio.create_task(log.append(append(sagas[0], 99, [intent(1)])))
        assert not lives.done()
        at_rest = done
        await asyncio.to_thread(own_postgres.start_again)
        await asyncio.wait_for(lives, 20)
        with pytest.raises(VersionConflict):
            await asyncio.wait_for(waiting, 10)
    assert at_rest < done == 40 * each
    for saga in sagas:
        assert await sequences(pool, saga) == list(range(each))
    counts = await pool.fetch("SELECT DISTINCT next_sequence FROM evosaga.sagas")
    assert [row["next_sequence"] for row in counts] == [each]
    pool.terminate()


async def test_a_cancelled_caller_takes_nothing_back(log: EventLog, pool: Pool) -> None:
    a, b = await new_sagas(pool, 2)
    impatient = asyncio.create_task(log.append(append(a, 0, [started(a)])))
    await asyncio.sleep(0)
    impatient.cancel()
    await log.append(append(b, 0, [started(b)]))
    assert await sequences(pool, a) == [0]


async def test_select_tells_the_whole_story_in_json(log: EventLog, pool: Pool) -> None:
    """What ``psql`` shows is the event itself, without nulls and without its type said twice."""
    [saga] = await new_sagas(pool)
    await log.append(append(saga, 0, [started(saga)]))
    row = await pool.fetchrow("SELECT type, data FROM evosaga.saga_events WHERE saga_id = $1", saga)
    assert row is not None
    assert row["type"] == "saga.started"
    assert set(json.loads(row["data"])) == {
        "saga", "version", "command", "command_id", "command_hash", "business_key", "input", "facts"
    }  # fmt: skip
