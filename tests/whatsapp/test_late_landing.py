"""C7: an instance that lands after its create was undone is undone late, and the log says so."""

from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, SagaView, history, list_sagas
from evosaga.sagas.definition import Retry
from evosaga.sagas.registry import discover, registry_of
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.repairs.watch_instance import WATCH_INSTANCE
from tests.conftest import SECRET
from tests.support.driving import create, delete, impatient, nothing_pending, outcome, publish
from tests.support.waiting import eventually

IMPATIENT = registry_of(
    [
        replace(
            CREATE_INTEGRATION,
            steps=(
                replace(CREATE_INTEGRATION.steps[0], retry=Retry(attempts=1)),
                *CREATE_INTEGRATION.steps[1:],
            ),
        ),
        WATCH_INSTANCE,
    ]
)


@pytest.mark.fault("c7")
async def test_an_instance_that_lands_after_its_undo_is_removed_late_and_the_log_says_so(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("late", operation="create", seconds=1.2, reply="cut")
    patient = settings.model_copy(update={"watch_after": (0.5, 2.0, 2.5, 3.0)})

    async with running_worker(patient, IMPATIENT):
        saga = await outcome(pool, await publish(redis, create()))
        assert saga.status == "compensated"
        assert not evolution.live()

        await eventually(lambda: bool(evolution.live()), message="the instance to land")
        await eventually(lambda: not evolution.rows(), message="it to be removed late")
        watch = (await list_sagas(pool, Filter(saga="watch-instance")))[0][0]
        watch = await outcome(pool, str(watch.saga_id))

    told = [r.event for r in await history(pool, watch.saga_id)]
    notes = [getattr(event, "result", {}).get("note") for event in told]
    assert watch.status == "completed"
    assert notes.count("landed_late_and_removed") == 1


async def test_a_create_that_was_seen_to_land_is_not_watched_after_its_undo(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    command = create()
    await redis.set(f"evosaga:removed:wa-{command['id']}", command["id"])

    async with running_worker(settings, discover()):
        saga = await outcome(pool, await publish(redis, command))

    assert saga.status == "compensated"
    assert not evolution.rows()
    assert not (await list_sagas(pool, Filter(saga="watch-instance")))[0]


QUICK = impatient(4)


async def created_and_deleted(
    settings: Settings, pool: Pool, redis: Redis
) -> tuple[SagaView, str, list[Any]]:
    """The create, the token of its instance, and the watches once its delete is over."""
    async with running_worker(settings, QUICK):
        made = await outcome(pool, await publish(redis, create()))
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        await eventually(lambda: nothing_pending(redis))
        await eventually(lambda: told(pool), message="every follow-up to be published")
        await eventually(lambda: nothing_pending(redis))
    assert (made.status, gone.status) == ("completed", "completed")
    keys = KeyRing([SECRET])
    token = keys.instance_token(made.saga_id, keys.current)
    return made, token, list((await list_sagas(pool, Filter(saga="watch-instance")))[0])


async def told(pool: Pool) -> bool:
    """Whether the relay has published all there is."""
    query = "SELECT (SELECT position FROM evosaga.relay) = max(position) FROM evosaga.saga_events"
    return bool(await pool.fetchval(query))


@pytest.mark.fault("c7")
async def test_a_create_that_was_sent_twice_is_watched_after_its_delete_and_removed_late(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """The first POST was lost, the second succeeded; the first lands when all is deleted."""
    evolution.arm("refuse", operation="create")
    patient = settings.model_copy(update={"watch_after": (0.1, 0.2, 0.3, 30.0)})
    made, token, watches = await created_and_deleted(patient, pool, redis)
    assert not evolution.rows()
    assert [watch.status for watch in watches] == ["running"]
    assert made.instance_name

    evolution.put(made.instance_name, token=token, integration="EVOLUTION")
    async with running_worker(patient, QUICK):
        await eventually(lambda: not evolution.rows(), message="it to be removed late")

        async def noted() -> bool:
            events = [r.event for r in await history(pool, watches[0].saga_id)]
            notes = [getattr(event, "result", {}).get("note") for event in events]
            return notes.count("landed_late_and_removed") == 1

        await eventually(noted, message="the log to say so")


@pytest.mark.parametrize(
    ("mode", "operation"),
    [(None, ""), ("5xx_before", "connectionState")],
    ids=["never in doubt", "found to have landed"],
)
async def test_a_create_of_which_nothing_can_land_late_is_not_watched_after_its_delete(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    mode: str | None,
    operation: str,
) -> None:
    if mode:
        evolution.arm(mode, operation=operation)
    made, _, watches = await created_and_deleted(settings, pool, redis)
    assert watches == []
    doubts = [getattr(r.event, "outcome", None) for r in await history(pool, made.saga_id)]
    assert doubts.count("unknown") == (1 if mode else 0)


async def test_an_instance_whose_row_was_lost_by_hand_is_not_watched_away(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Its create is completed and nothing has deleted it: that it works is more likely."""
    async with running_worker(settings, QUICK) as worker:
        made = await outcome(pool, await publish(redis, create()))
        await pool.execute("DELETE FROM healthcare.integrations")
        data = {
            "instance_name": made.instance_name,
            "created_by": str(made.saga_id),
            "key_id": KeyRing([SECRET]).current,
        }
        gate = CommandHandler(pool, worker.log, worker.services, QUICK)
        await gate.submit(Command("watch", "instance.watch", data))
        watch = await outcome(pool, "watch")
    assert (watch.status, watch.code) == ("rejected", "not_undone")
    assert list(evolution.live()) == [made.instance_name]
