"""A command that one worker does not know is left to one that does; what nobody knows waits first.

Several releases, or several registries, on one stream.
"""

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

import evosaga.orchestrator.commands.consumer
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.retention import Retention, trim
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands import handover
from evosaga.orchestrator.commands.handover import NOBODY, announced
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from evosaga.sagas.definition import Admission, Saga, retryable
from evosaga.sagas.outcome import Done, Outcome
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from tests.support.driving import count, create, dead_letters, nothing_pending, outcome, publish
from tests.support.waiting import eventually


class Greet(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str


async def greet(_: Any) -> Outcome:
    return Done()


async def admit(_c: Any, _w: Any, commands: Any) -> list[Admission]:
    return [Admission(f"greet/{saga_id}", None, None) for saga_id, _ in commands]


GREETING = Saga("greet", 1, "people.greet", Greet, admit, (retryable("greet", do=greet),))
OLD = discover()
NEW = registry_of([*OLD.versions.values(), GREETING])
ONLY_GREETING = registry_of([GREETING])


class CreateWithNote(CreateIntegration):
    note: str | None = None


def with_note() -> SagaRegistry:
    """A release in which a create may carry another field."""
    first = OLD.by_command["integration.create"]
    others = [saga for saga in OLD.versions.values() if saga is not first]
    return registry_of([*others, replace(first, input=CreateWithNote)])


def greeting() -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "type": "people.greet", "data": {"name": "Ana"}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 1.0)


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """With a wait that no test lives to see the end of."""
    return settings.model_copy(update={"unknown_command_seconds": 3600.0})


async def left(redis: Redis) -> list[bytes]:
    return list(await streams.pending(redis, consumer=NOBODY))


async def test_two_catalogues_on_one_stream_get_each_their_commands(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    commands = [greeting() if number % 2 else create() for number in range(20)]
    async with running_worker(settings, OLD), running_worker(settings, ONLY_GREETING):
        for command in commands:
            await publish(redis, command)
        for command in commands:
            assert (await outcome(pool, command["id"], 40)).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []
    assert await count(pool, "SELECT count(*) FROM evosaga.sagas WHERE status = 'completed'") == 20


async def test_a_command_of_the_next_release_waits_for_its_first_worker_over_restarts(
    patient: Settings, pool: Pool, redis: Redis
) -> None:
    command = greeting()
    for _ in range(2):
        async with running_worker(patient, OLD):
            await publish(redis, command)
            await eventually(lambda: left(redis))
            assert (await outcome(pool, await publish(redis, create()))).status == "completed"
    assert await dead_letters(redis) == []
    async with running_worker(patient, OLD), running_worker(patient, NEW):
        assert (await outcome(pool, command["id"])).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []


async def test_what_nobody_knows_waits_the_stated_time_and_is_then_a_dead_letter(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 3.0)
    waits = settings.model_copy(update={"unknown_command_seconds": 1.5})
    command = greeting()
    async with running_worker(waits, OLD), running_worker(waits, OLD):
        await publish(redis, command)
        await eventually(lambda: left(redis))
        assert await dead_letters(redis) == []
        await eventually(lambda: nothing_pending(redis), 20)
    [letter] = await dead_letters(redis)
    assert (letter["code"], letter["deliveries"]) == ("unknown_type", "1")
    assert json.loads(letter["data"]) == command
    told, died = (int(letter["message_id"].partition("-")[0]), await written(redis))
    assert died - told >= 1500


async def written(redis: Redis) -> int:
    info: Any = await redis.xinfo_stream(streams.DEAD_COMMANDS)
    return int(info["last-generated-id"].partition(b"-")[0])


async def test_what_a_living_worker_says_it_knows_is_left_to_it_however_long_it_takes(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_ASK_AGAIN", 0.1)
    await pool.execute(
        "INSERT INTO evosaga.workers (worker_id, lease_until, knows) VALUES ('busy', now(), $1)",
        announced(ONLY_GREETING),
    )
    command = greeting()
    async with running_worker(settings, OLD):
        await publish(redis, command)
        await publish(redis, {"id": "typo", "type": "people.greets", "data": {}})
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        assert len(await left(redis)) == 1
        await pool.execute("DELETE FROM evosaga.workers WHERE worker_id = 'busy'")
        await eventually(lambda: nothing_pending(redis))
    letters = await dead_letters(redis)
    assert [json.loads(letter["data"])["id"] for letter in letters] == ["typo", command["id"]]


async def test_a_field_that_only_the_newer_release_has_is_no_mistake_while_it_lives(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    commands = [create(note="by the new form") for _ in range(10)]
    wrong = create(note=7)
    async with running_worker(settings, OLD), running_worker(settings, with_note()):
        for command in (*commands, wrong):
            await publish(redis, command)
        for command in commands:
            assert (await outcome(pool, command["id"], 40)).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    [letter] = await dead_letters(redis)
    assert (letter["code"], json.loads(letter["data"])) == ("invalid_data", wrong)


async def test_what_is_wrong_in_every_release_that_lives_is_a_dead_letter_at_once(
    patient: Settings, redis: Redis
) -> None:
    async with running_worker(patient, OLD), running_worker(patient, OLD):
        await publish(redis, create(note="by the new form"))
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS), 3)
        await eventually(lambda: nothing_pending(redis))
    [letter] = await dead_letters(redis)
    assert letter["code"] == "invalid_data"


async def test_a_cancel_of_a_saga_of_a_newer_version_comes_to_a_worker_that_has_it(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    first = OLD.by_command["integration.create"]
    second = replace(first, version=2)
    newer = registry_of([*OLD.versions.values(), second])
    evolution.arm("licence", operation="create", times=None)
    id_ = await publish(redis, create())
    async with running_worker(settings, newer):

        async def begun() -> bool:
            saga = await find_saga(pool, id_)
            return saga is not None and saga.version == 2

        await eventually(begun)
    cancel = {"id": "cancel", "type": "saga.cancel", "data": {"saga_id": id_}}
    async with running_worker(settings, OLD):
        await publish(redis, cancel)
        await eventually(lambda: left(redis))
        async with running_worker(settings, newer):
            assert (await outcome(pool, id_)).status == "compensated"
            await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []


async def test_what_waits_circles_nowhere_and_is_not_trimmed(
    patient: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 3.0)
    handled: list[int] = []
    handle = evosaga.orchestrator.commands.consumer.CommandConsumer._handle

    async def counted(self: Any, messages: Any) -> None:
        handled.append(len(messages))
        await handle(self, messages)

    monkeypatch.setattr(evosaga.orchestrator.commands.consumer.CommandConsumer, "_handle", counted)
    async with running_worker(patient, OLD), running_worker(patient, OLD):
        for _ in range(20):
            await publish(redis, greeting())

        async def all_left() -> bool:
            return len(await left(redis)) == 20

        await eventually(all_left)
        before: Any = await redis.info("commandstats")
        old = min(int(id_.partition(b"-")[0]) for id_ in await left(redis))

        async def some_time_later() -> bool:
            seconds, _ = await redis.time()
            return seconds * 1000 > old + 8000

        await eventually(some_time_later, 20)
        after: Any = await redis.info("commandstats")
        await trim(redis, streams.COMMANDS, Retention(0))
        assert await redis.xlen(streams.COMMANDS) == 20
    assert sum(handled) == 20, "each was handed to one worker once"
    asked = [s["cmdstat_xrange"]["calls"] if "cmdstat_xrange" in s else 0 for s in (before, after)]
    assert asked[1] - asked[0] <= 40, "each worker has read each once"


async def test_what_a_newer_release_could_read_and_this_one_can_not_stops_nobody(
    settings: Settings, redis: Redis
) -> None:
    await streams.ensure_group(redis)
    await redis.xadd(streams.COMMANDS, {"data": "x" * 70_000})
    await redis.xreadgroup(streams.GROUP, NOBODY, {streams.COMMANDS: ">"})
    async with running_worker(settings, OLD) as worker:
        await eventually(lambda: nothing_pending(redis))
        assert not worker.failed.done()
    [letter] = await dead_letters(redis)
    assert letter["code"] == "oversized"


async def test_one_that_was_deleted_from_the_stream_meanwhile_is_forgotten(
    patient: Settings, redis: Redis
) -> None:
    async with running_worker(patient, OLD):
        await publish(redis, greeting())
        await eventually(lambda: left(redis))
        [id_] = await left(redis)
    await redis.xdel(streams.COMMANDS, id_)
    async with running_worker(patient, OLD):
        await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []


def test_what_a_worker_announces_tells_the_shapes_of_commands_apart() -> None:
    old, new = announced(OLD), announced(with_note())
    assert "create-integration/1" in old
    assert len(set(old) - set(new)) == 1
    assert all(entry.rpartition("/")[2].isdecimal() for entry in new), "older releases read them so"
