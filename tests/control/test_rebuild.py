"""G7: the status rows can be had again from the log, and what somebody changed is put right."""

import asyncio
import io
import uuid
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.maintenance.rebuild
from evosaga.events import streams
from evosaga.events.commands import Command
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.control import apply_control
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.rebuild import rebuild
from evosaga.sagas.registry import discover, registry_of
from evosaga.sagas.whatsapp.services import Services
from tests.conftest import API_KEY, Servers
from tests.control.conftest import Gossip, parked, send
from tests.support.commandline import Evosaga
from tests.support.databases import Databases
from tests.support.driving import count, create, delete, outcome, publish, running_log
from tests.support.waiting import eventually
from tests.support.workers import Worker

ROWS = "SELECT * FROM evosaga.sagas ORDER BY saga_id"
ACTIVE = ("running", "compensating")


async def every_kind(
    pool: Pool, redis: Redis, evolution: SimulatedEvolution, gossip: Gossip
) -> None:
    """Sagas of every status, and one that is parked on its way back."""
    await parked(pool, redis)
    gossip.refuses = False
    done = create()
    made = await outcome(pool, await publish(redis, done))
    same = create(organization_id=done["data"]["organization_id"])
    assert (await outcome(pool, await publish(redis, same))).status == "rejected"
    gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
    assert gone.status == "completed"
    evolution.arm("reject", operation="create", message="Invalid integration")
    assert (await outcome(pool, await publish(redis, create()))).status == "compensated"
    evolution.arm("licence", operation="create", times=None)
    held = create()
    await publish(redis, held)
    await eventually(lambda: evolution.fired.get("licence"))


async def settled(pool: Pool) -> list[dict[str, Any]]:
    """All rows; of those under way without what changes while nothing happens."""
    rows = [dict(row) for row in await pool.fetch(ROWS)]
    for row in rows:
        if row["status"] in ACTIVE:
            row["next_at"] = row["next_at"] is not None
            # Who drives it, and with that what a sweep finds it by.
            for name in ("owner", "due_at", "waits_since"):
                row.pop(name)
    return rows


@pytest.fixture(scope="module")
async def made(databases: Databases, servers: Servers, short_waits: Settings) -> dict[str, bytes]:
    """What sagas of every kind leave in the log and in their rows, once for all tests."""
    name, redis, gossip = await databases.take(), streams.connect(servers.redis), Gossip()
    pool = await open_pool(databases.url(name))
    await redis.flushall()
    async with SimulatedEvolution(api_key=API_KEY, pace=0.05) as evolution:
        own = {"database_url": databases.url(name), "evolution_url": evolution.url}
        async with running_worker(short_waits.model_copy(update=own), gossip.registry()):
            await every_kind(pool, redis, evolution, gossip)
    found: dict[str, bytes] = {}
    for table in ("saga_events", "sagas"):
        copied = io.BytesIO()
        await pool.copy_from_table(table, schema_name="evosaga", output=copied, format="binary")
        found[table] = copied.getvalue()
    pool.terminate()
    await redis.aclose()
    await databases.give_back(name)
    return found


@pytest.fixture
async def sagas(made: dict[str, bytes], pool: Pool) -> list[dict[str, Any]]:
    """The rows of sagas of every kind, whose worker has gone."""
    for table, copied in made.items():
        source = io.BytesIO(copied)
        await pool.copy_to_table(table, schema_name="evosaga", source=source, format="binary")
    await pool.execute(
        "SELECT setval(pg_get_serial_sequence('evosaga.saga_events', 'position'), max(position)) "
        "FROM evosaga.saga_events"
    )
    found = await settled(pool)
    statuses = {row["status"] for row in found}
    assert statuses == {"failed", "completed", "rejected", "compensated", "running"}
    return found


@pytest.mark.fault("g7")
async def test_rows_rebuilt_from_nothing_are_the_same_rows(
    sagas: list[dict[str, Any]], pool: Pool
) -> None:
    compared = await rebuild(pool, discover(), check=True)
    assert (compared.different, compared.left) == (0, 0)
    await pool.execute("TRUNCATE evosaga.sagas")
    report = await rebuild(pool, discover(), check=False)
    assert set(report.wrong.values()) == {("*",)}
    assert (report.repaired, report.left) == (len(sagas), 0)
    assert await settled(pool) == sagas
    events = await count(pool, "SELECT count(*) FROM evosaga.saga_events")
    assert (report.sagas, report.events) == (len(sagas), events)


TAMPERED = (
    ("status", "'compensated'"),
    ("saga", "'watch-instance'"),
    ("version", "7"),
    ("business_key", "'somebody-elses'"),
    ("organization_id", "gen_random_uuid()"),
    ("instance_name", "'another'"),
    ("command_id", "'another'"),
    ("command_hash", "'another'"),
    ("step", "'cache'"),
    ("direction", "'compensation'"),
    ("attempt", "9"),
    ("code", "'other'"),
    ("message", "NULL"),
    ("existing_instance", "'another'"),
    ("correlation_id", "'another'"),
    ("causation_id", "NULL"),
    ("next_sequence", "next_sequence + 1"),
    ("created_at", "created_at - interval '1 day'"),
    ("updated_at", "now()"),
    ("behind", "gen_random_uuid()"),
    ("next_at", "now()"),
    ("owner", "'a-worker'"),
)


@pytest.mark.fault("g7")
async def test_a_row_that_was_tampered_with_is_found_and_repaired(
    sagas: list[dict[str, Any]], pool: Pool, subtests: pytest.Subtests
) -> None:
    for column, value in TAMPERED:
        with subtests.test(column):
            await pool.execute(
                f"UPDATE evosaga.sagas SET {column} = {value} WHERE status = 'failed'"
            )
            compared = await rebuild(pool, discover(), check=True)
            (columns,) = compared.wrong.values()
            assert columns == (("next_at",) if column == "owner" else (column,))
            assert compared.left == 1
            assert await settled(pool) != sagas, "a check writes nothing"
            report = await rebuild(pool, discover(), check=False)
            assert (report.repaired, report.left) == (1, 0)
            assert await settled(pool) == sagas


async def test_a_saga_under_way_without_a_time_is_made_due_again(
    sagas: list[dict[str, Any]], pool: Pool
) -> None:
    """No sweep would ever find it."""
    await pool.execute("UPDATE evosaga.sagas SET next_at = NULL WHERE status = 'running'")
    report = await rebuild(pool, discover(), check=False)
    assert list(report.wrong.values()) == [("next_at",)]
    assert await settled(pool) == sagas


async def test_who_drives_a_saga_and_when_it_is_due_is_kept(
    sagas: list[dict[str, Any]], pool: Pool
) -> None:
    await pool.execute(
        "UPDATE evosaga.sagas SET owner = 'somebody', next_at = '2031-01-01', code = 'x' "
        "WHERE status = 'running'"
    )
    await rebuild(pool, discover(), check=False)
    row = await pool.fetchrow("SELECT * FROM evosaga.sagas WHERE status = 'running'")
    assert row is not None
    assert (row["owner"], row["next_at"].year) == ("somebody", 2031)
    assert row["code"] != "x"


async def test_a_row_that_came_back_is_driven_to_its_end(
    settings: Settings,
    sagas: list[dict[str, Any]],
    pool: Pool,
    evolution: SimulatedEvolution,
    gossip: Gossip,
) -> None:
    await pool.execute("DELETE FROM evosaga.sagas WHERE status = 'running'")
    assert (await rebuild(pool, discover(), check=False)).repaired == 1
    evolution.disarm()
    async with running_worker(settings, gossip.registry()):

        async def nothing_is_under_way() -> bool:
            query = "SELECT count(*) FROM evosaga.sagas WHERE status = 'running'"
            return await count(pool, query) == 0

        await eventually(nothing_is_under_way, 20)


async def test_what_this_release_cannot_read_is_left_alone_and_said(
    sagas: list[dict[str, Any]], pool: Pool
) -> None:
    without_deletes = registry_of(
        saga for saga in discover().versions.values() if saga.name != "delete-integration"
    )
    report = await rebuild(pool, without_deletes, check=False)
    (reason,) = report.alone.values()
    assert reason == "this release does not know delete-integration v1"
    assert report.left == 1
    newer = uuid.uuid4()
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "VALUES ($1, 0, 'saga.foreseen', '{}', 'c')",
        newer,
    )
    report = await rebuild(pool, discover(), check=False)
    assert list(report.alone) == [newer]
    assert await settled(pool) == sagas


async def test_rows_without_a_history_are_counted_and_left_alone(
    sagas: list[dict[str, Any]], pool: Pool
) -> None:
    await pool.execute(
        """
        INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,
            command_hash, correlation_id, next_sequence)
        VALUES (gen_random_uuid(), 's', 1, 'completed', 'k', 'c', 'h', 'c', 4)
        """
    )
    report = await rebuild(pool, discover(), check=False)
    assert (report.without_history, report.left) == (1, 0)
    assert await count(pool, "SELECT count(*) FROM evosaga.sagas") == len(sagas) + 1


async def test_a_row_that_another_stands_in_the_way_of_is_refused_and_its_neighbours_written(
    sagas: list[dict[str, Any]], pool: Pool
) -> None:
    key = await pool.fetchval("SELECT business_key FROM evosaga.sagas WHERE status = 'failed'")
    await pool.execute("TRUNCATE evosaga.sagas")
    await pool.execute(
        """
        INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,
            command_hash, correlation_id, next_sequence)
        VALUES (gen_random_uuid(), 's', 1, 'running', $1, 'c', 'h', 'c', 4)
        """,
        key,
    )
    report = await rebuild(pool, discover(), check=False)
    assert (report.repaired, len(report.alone), report.left) == (len(sagas) - 1, 1, 1)


async def test_while_workers_run_nothing_differs_and_nobody_is_held_up(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip
) -> None:
    gossip.refuses = False
    ids = [await publish(redis, create()) for _ in range(60)]
    over = asyncio.Event()
    compared = 0

    async def compare() -> None:
        nonlocal compared
        while not over.is_set():
            report = await rebuild(pool, discover(), check=compared % 2 == 0)
            assert report.different == 0
            compared += 1

    comparing = asyncio.create_task(compare())
    for id_ in ids:
        assert (await outcome(pool, id_, 30)).status == "completed"
    over.set()
    await comparing
    assert compared > 1


async def test_batches_do_not_lose_a_saga_at_their_edges(
    sagas: list[dict[str, Any]], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evosaga.orchestrator.maintenance.history_scan._BATCH", 1)
    await pool.execute("TRUNCATE evosaga.sagas")
    assert (await rebuild(pool, discover(), check=False)).repaired == len(sagas)
    assert await settled(pool) == sagas


async def test_the_command_compares_repairs_and_says_how_fast(
    sagas: list[dict[str, Any]], pool: Pool, evosaga: Evosaga
) -> None:
    clean = await evosaga("rebuild", "--check")
    assert clean.code == 0, clean.err
    assert "0 rows differed from the log" in clean.out
    assert "events/s)" in clean.lines[0]
    await pool.execute("UPDATE evosaga.sagas SET code = 'x' WHERE status = 'failed'")
    found = await evosaga("rebuild", "--check", "--json")
    assert found.code == 1
    assert list(found.json["wrong"].values()) == [["code"]]
    repaired = await evosaga("rebuild")
    assert repaired.code == 0
    assert "1 rows differed from the log, 1 of them repaired" in repaired.out
    assert "differed in code" in repaired.out
    assert await settled(pool) == sagas


async def test_a_saga_parked_on_its_way_back_and_cancelled_is_rebuilt_as_well(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    no_cache = Gossip(name="cache", attempts=1).registry()
    async with running_worker(settings, no_cache):
        evolution.arm("5xx_before", operation="delete", times=None)
        stuck = await outcome(pool, await publish(redis, create()), 40)
        assert (stuck.status, stuck.direction) == ("failed", "compensation")
        assert (await rebuild(pool, no_cache, check=True)).different == 0
        evolution.disarm()
        await send(redis, "saga.cancel", stuck)

        async def over() -> bool:
            return (await outcome(pool, str(stuck.saga_id))).status == "compensated"

        await eventually(over, 20)
    assert (await rebuild(pool, no_cache, check=True)).different == 0


async def test_a_saga_that_goes_on_between_the_look_and_the_repair_is_read_once_more(
    sagas: list[dict[str, Any]],
    pool: Pool,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await pool.execute("UPDATE evosaga.sagas SET code = 'x' WHERE status = 'failed'")
    stuck = await pool.fetchval("SELECT saga_id FROM evosaga.sagas WHERE status = 'failed'")
    repair_now = evosaga.orchestrator.maintenance.rebuild._repair

    async def replay_first(*arguments: Any) -> None:
        async with running_log(pool) as log:
            wish = Command(id="r", type="saga.replay", data={"saga_id": str(stuck)})
            await apply_control(log, services, discover(), wish, None)
        await repair_now(*arguments)

    monkeypatch.setattr(evosaga.orchestrator.maintenance.rebuild, "_repair", replay_first)
    assert (await rebuild(pool, discover(), check=False)).repaired == 1
    monkeypatch.undo()
    row = await pool.fetchrow("SELECT * FROM evosaga.sagas WHERE saga_id = $1", stuck)
    assert row is not None
    assert (row["status"], row["code"]) == ("running", None)
    assert (await rebuild(pool, discover(), check=True)).different == 0
