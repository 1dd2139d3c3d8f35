"""The verb ``appends``, and what ``doctor`` and ``check-deploy`` say of the same."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, nothing_pending, outcome, publish
from tests.support.waiting import eventually

OLDER = (
    "INSERT INTO evosaga.workers (worker_id, lease_until) "
    "VALUES ('older', now() + interval '1 hour')"
)


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def finding(evosaga: Evosaga) -> tuple[str, str]:
    """What ``doctor`` says of appends."""
    checks = (await evosaga("doctor", "--json")).json["checks"]
    (one,) = [check for check in checks if check["check"] == "appends"]
    return one["verdict"], f"{one['said']}: {one['cure']}"


async def test_appends_are_switched_while_workers_work(
    evosaga: Evosaga, settings: Settings, pool: Pool, redis: Redis
) -> None:
    assert (await evosaga("appends")).out.startswith("appends commit one after another")
    async with running_worker(settings):
        switched = await evosaga("appends", "--parallel", "--json")
        assert switched.code == 0
        assert switched.json["parallel"] is True
        assert (switched.json["workers"], switched.json["older_workers"]) == (1, [])
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        await eventually(lambda: nothing_pending(redis))
        assert await finding(evosaga) == ("ok", "commit in parallel: ")
        back = await evosaga("appends", "--in-order")
        assert (back.code, back.out[:32]) == (0, "appends commit one after another")
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
    assert await finding(evosaga) == ("ok", "commit one after another: ")


async def test_what_an_older_release_could_not_do_is_refused_or_told(
    evosaga: Evosaga, pool: Pool
) -> None:
    both = await evosaga("appends", "--parallel", "--in-order")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    await pool.execute(OLDER)
    refused = await evosaga("appends", "--parallel")
    assert refused.code == 2
    assert "nothing was changed: 1 of 1 living workers are of an older release" in refused.err
    await pool.execute("DELETE FROM evosaga.workers")
    assert (await evosaga("appends", "--parallel")).code == 0
    await pool.execute(OLDER)
    verdict, said = await finding(evosaga)
    assert verdict == "bad"
    assert "no worker publishes events, 1 of 1 workers are of an older release" in said
    assert "older is of an older release" in (await evosaga("appends")).err
    deploy = await evosaga("check-deploy")
    assert deploy.code == 0
    assert "before a roll-back to one: evosaga appends --in-order" in deploy.err


async def test_positions_that_are_drawn_ahead_are_found(evosaga: Evosaga, pool: Pool) -> None:
    await pool.execute("ALTER SEQUENCE evosaga.saga_events_position_seq CACHE 20")
    verdict, said = await finding(evosaga)
    assert verdict == "bad"
    assert "draws 20 positions at once" in said
    assert "CACHE 1" in said
