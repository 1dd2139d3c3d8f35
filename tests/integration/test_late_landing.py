"""C7: an instance that lands after its create was undone is undone late, and the log says so."""

from dataclasses import replace

from redis.asyncio import Redis

from events.database import Pool
from orchestrator.app import running_worker
from orchestrator.config import Settings
from orchestrator.local.evolution import SimulatedEvolution
from orchestrator.queries import Filter, history, list_sagas
from sagas.catalogue import catalogue_of, load
from sagas.create_integration import CREATE_INTEGRATION
from sagas.definition import Retry
from sagas.watch_instance import WATCH_INSTANCE
from tests.driving import create, outcome, publish
from tests.waiting import eventually

IMPATIENT = catalogue_of(
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


async def test_c7_an_instance_that_lands_after_its_undo_is_removed_late_and_the_log_says_so(
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

    async with running_worker(settings, load()):
        saga = await outcome(pool, await publish(redis, command))

    assert saga.status == "compensated"
    assert not evolution.rows()
    assert not (await list_sagas(pool, Filter(saga="watch-instance")))[0]
