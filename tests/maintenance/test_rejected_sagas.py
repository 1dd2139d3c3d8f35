"""Rejected sagas are kept for a while and up to a number; their commands stay known for ever."""

import uuid
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.events.relay import Relay
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings, load_settings
from evosaga.orchestrator.maintenance.rejected_sagas import RejectedSagaArchive
from evosaga.sagas.whatsapp.services import Services
from tests.commands.test_accept import accepted
from tests.support.driving import count, dead_letters, delete, nothing_pending, publish
from tests.support.waiting import eventually

ROWS = "SELECT count(*) FROM evosaga.sagas WHERE status = 'rejected'"
EVENTS = "SELECT count(*) FROM evosaga.saga_events"


async def refuse(pool: Pool, services: Services, redis: Redis, many: int) -> list[dict[str, Any]]:
    """So many deletes of nothing, rejected and told."""
    organization = str(uuid.uuid4())
    commands = [delete(f"nothing-{n:03}", organization_id=organization) for n in range(many)]
    answers = await accepted(pool, services, *commands)
    assert {answer.kind for answer in answers} == {"rejected"}
    relay = Relay(pool, redis, "relay")
    while await relay.pump():
        pass
    return commands


async def test_of_a_flood_only_the_newest_are_kept(
    pool: Pool, services: Services, redis: Redis
) -> None:
    await refuse(pool, services, redis, 12)
    others = await refuse(pool, services, redis, 3)
    archive = RejectedSagaArchive(pool, "w", keep=0.0, most=5)
    assert await archive.archive() == 7
    assert await archive.archive() == 0
    assert await count(pool, ROWS) == 5 + len(others)
    assert await count(pool, EVENTS) == 5 + len(others)


async def test_what_is_older_than_it_is_kept_goes_and_what_is_not_stays(
    pool: Pool, services: Services, redis: Redis
) -> None:
    await refuse(pool, services, redis, 4)
    old = (
        "UPDATE evosaga.sagas SET created_at = now() - interval '2 hours' WHERE instance_name < $1"
    )
    await pool.execute(old, "nothing-002")
    assert await RejectedSagaArchive(pool, "w", keep=0.0, most=100).archive() == 0, (
        "0 keeps them for ever"
    )
    assert await RejectedSagaArchive(pool, "w", keep=3600.0, most=100).archive() == 2
    assert await count(pool, ROWS) == 2


async def test_the_same_command_still_changes_nothing_and_its_id_is_still_taken(
    pool: Pool, services: Services, redis: Redis
) -> None:
    commands = await refuse(pool, services, redis, 3)
    assert await RejectedSagaArchive(pool, "w", keep=0.0, most=1).archive() == 2
    [again] = await accepted(pool, services, commands[0])
    assert again.kind == "duplicate"
    another = commands[0] | {"data": commands[0]["data"] | {"instance_name": "something-else"}}
    [conflict] = await accepted(pool, services, another)
    assert conflict.kind == "conflict"
    assert await count(pool, ROWS) == 1


async def test_what_nobody_was_told_of_yet_is_kept(pool: Pool, services: Services) -> None:
    await accepted(pool, services, *(delete(f"nothing-{n:03}") for n in range(3)))
    assert await RejectedSagaArchive(pool, "w", keep=0.0, most=1).archive() == 0


async def test_no_other_saga_is_ever_taken_away(
    settings: Settings, pool: Pool, services: Services, redis: Redis
) -> None:
    await refuse(pool, services, redis, 2)
    await pool.execute("UPDATE evosaga.sagas SET status = 'completed'")
    assert await RejectedSagaArchive(pool, "w", keep=0.0, most=1).archive() == 0


async def test_a_worker_looks_after_it_and_a_repeated_command_is_acknowledged(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evosaga.orchestrator.maintenance.rejected_sagas._EVERY", 0.2)
    monkeypatch.setattr(RejectedSagaArchive.__init__, "__defaults__", (0.2,))
    few = settings.model_copy(update={"rejected_most": 2})
    organization = str(uuid.uuid4())
    commands = [delete(f"nothing-{n:03}", organization_id=organization) for n in range(6)]
    async with running_worker(few):
        for command in commands:
            await publish(redis, command)

        async def few_are_left() -> bool:
            return await count(pool, f"{ROWS} AND next_sequence = 1") == 2 and (
                await count(pool, "SELECT count(*) FROM evosaga.refused") == 4
            )

        await eventually(few_are_left, 60)
        await publish(redis, commands[0])
        await eventually(lambda: nothing_pending(redis), 60)
    assert await dead_letters(redis) == []
    assert await count(pool, ROWS) == 2


def test_the_settings_say_how_long_and_how_many() -> None:
    settings = load_settings(_env_file=None)
    assert (settings.rejected_keep, settings.rejected_most) == (30 * 86400.0, 1000)
