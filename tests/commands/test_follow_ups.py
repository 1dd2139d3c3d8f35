"""Commands that are ours alone: from the stream and over HTTP only the log can prove them."""

import json
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.append import Append, StatusRow
from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.model import FollowUp, StepSucceeded
from evosaga.orchestrator.api.commands import understood
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.follow_ups import resolve_all
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, list_sagas
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import SECRET
from tests.support.driving import (
    count,
    create,
    dead_letters,
    entries,
    nothing_pending,
    outcome,
    publish,
    running_log,
)
from tests.support.waiting import eventually

INTERNAL = sorted(discover().by_command.keys() - discover().public.keys())


def as_told(name: Any, by: Any) -> dict[str, Any]:
    """The data of an ``instance.watch`` as a saga of ours would give it."""
    key = KeyRing([SECRET]).current
    return {"instance_name": str(name), "created_by": str(by), "key_id": key}


async def brought(log: EventLog, saga_id: uuid.UUID, sequence: int, data: Any) -> str:
    """An event of a saga that brings an ``instance.watch``; the id under which it is told."""
    follow = FollowUp(type="instance.watch", data=data)
    event = StepSucceeded(step="evolution", attempt=1, follow_up=follow)
    row = StatusRow("compensated")
    await log.append(Append(saga_id, sequence, [event], row, str(saga_id), None, None))
    return f"{saga_id}:{sequence}"


async def test_one_of_our_own_commands_from_a_stranger_looks_like_one_that_does_not_exist(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        data = as_told(made.instance_name, made.saga_id)
        by_event = f"{made.saga_id}:0"
        for type_ in INTERNAL:
            await redis.delete(streams.DEAD_COMMANDS)
            for id_, kind, about in (
                (f"evil {type_}", type_, data),
                (f"empty {type_}", type_, {}),
                (by_event, type_, data),
                (f"{uuid.uuid4()}:3", type_, data),
                (f"nobody's {type_}", "no.such.thing", data),
            ):
                await publish(redis, {"id": id_, "type": kind, "data": about})
            await eventually(lambda: nothing_pending(redis))
            letters = await dead_letters(redis)
            said = {
                (
                    one["code"],
                    one["message"].replace(repr(type_), "IT").replace("'no.such.thing'", "IT"),
                )
                for one in letters
            }
            assert len(letters) == 5, type_
            assert [code for code, _ in said] == ["unknown_type"], said
            assert await count(pool, "SELECT count(*) FROM evosaga.sagas") == 1
    assert list(evolution.live()) == [made.instance_name]


async def test_what_the_log_proves_is_obeyed_as_it_was_told_and_nothing_beside_it(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    """One that copies it may have it run sooner, but neither changed nor expired."""
    async with running_log(pool) as log, running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        await pool.execute("DELETE FROM healthcare.integrations")
        await pool.execute(
            "UPDATE evosaga.sagas SET status = 'compensated', direction = 'compensation'"
        )
        data = as_told(made.instance_name, made.saga_id)
        id_ = await brought(log, made.saga_id, made.sequence, data)
        wish = {"id": id_, "type": "instance.watch", "data": data}
        other = data | {"key_id": "00000000"}
        for copy in (
            wish | {"data": other},
            wish | {"type": "instance.remove"},
            wish | {"expirytime": "2020-01-01T00:00:00Z", "correlationid": "theirs"},
        ):
            await publish(redis, copy)
        saga = await eventually_found(pool, id_)
        await eventually(lambda: nothing_pending(redis))
    assert saga["status"] != "rejected"
    assert saga["correlation_id"] == str(made.saga_id)
    codes = [letter["code"] for letter in await dead_letters(redis)]
    assert codes == ["unknown_type"] * 2


async def test_over_http_too_it_is_obeyed_as_the_log_has_it(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async with running_log(pool) as log, running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        data = as_told(made.instance_name, made.saga_id)
        id_ = await brought(log, made.saga_id, made.sequence, data)
    late = datetime(2020, 1, 1, tzinfo=UTC)
    copy = Command(id_, "instance.watch", data, "theirs", expires_at=late)
    nothing: Any = None
    here: Any = SimpleNamespace(gate=CommandHandler(pool, EventLog(pool), nothing, discover()))
    _, obeyed = await understood(here, copy)
    assert (obeyed.expires_at, obeyed.correlation_id) == (None, str(made.saga_id))


async def eventually_found(pool: Pool, command_id: str) -> Any:
    found: list[Any] = []

    async def there() -> bool:
        query = "SELECT status, correlation_id FROM evosaga.sagas WHERE command_id = $1"
        found[:] = await pool.fetch(query, command_id)
        return bool(found)

    await eventually(there)
    return found[0]


async def test_the_follow_up_of_an_undone_create_is_still_obeyed(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("hang_before", operation="create", times=None)
    quick = settings.model_copy(
        update={"evolution_timeout": 0.3, "create_deadline": 1.0, "watch_after": (0.1, 0.2, 0.3, 9)}
    )
    async with running_worker(quick):
        await outcome(pool, await publish(redis, create()), 30)

        async def watched() -> bool:
            return bool((await list_sagas(pool, Filter(saga="watch-instance")))[0])

        await eventually(watched, 20)
    assert await dead_letters(redis) == []


async def test_a_batch_without_one_of_ours_asks_the_log_nothing(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def counted(database: Any, registry: Any, commands: Any) -> Any:
        asked.append(len(commands))
        return await resolve_all(Counting(database), registry, commands)  # type: ignore[arg-type]

    class Counting:
        def __init__(self, database: Pool) -> None:
            self.database = database

        async def fetch(self, *query: Any) -> Any:
            asked.append(-1)
            return await self.database.fetch(*query)

    monkeypatch.setattr("evosaga.orchestrator.commands.handler.resolve_all", counted)
    commands = [create() for _ in range(5)]
    ours = [{"id": f"ours-{n}", "type": "key.drop", "data": {}} for n in range(3)]
    for command in commands:
        await streams.publish_command(redis, command)
    async with running_worker(settings):
        for command in commands:
            await outcome(pool, command["id"])
        assert -1 not in asked
    for command in ours:
        await streams.publish_command(redis, command)
    async with running_worker(settings):
        await eventually(lambda: nothing_pending(redis))
    assert asked.count(-1) == 1
    assert len(await entries(redis, streams.DEAD_COMMANDS)) == 3


async def test_while_postgres_is_away_one_of_ours_is_neither_obeyed_nor_dead(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [True]

    async def refused(*told: Any) -> Any:
        if away.pop() if away else False:
            raise ConnectionRefusedError
        return await resolve_all(*told)

    monkeypatch.setattr("evosaga.orchestrator.commands.handler.resolve_all", refused)
    wish = {"id": "evil", "type": "key.drop", "data": {"instance_name": "some-name"}}
    async with running_worker(settings):
        await publish(redis, create())
        await publish(redis, wish)
        await eventually(lambda: nothing_pending(redis), 20)
    [letter] = await dead_letters(redis)
    assert letter["code"] == "unknown_type"
    assert json.loads(letter["data"]) == wish
