"""Commands that come one by one over HTTP are accepted together, and none is another's burden."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

import evosaga.orchestrator.commands.accept
from evosaga.events.commands import BadCommand, Command
from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.commands.results import Accepted, Conflict
from evosaga.orchestrator.config.settings import Settings
from tests.api.conftest import asked
from tests.support.driving import contradictions, outcome


def command(**overrides: Any) -> Command:
    data = asked(organization_id=str(uuid.uuid4())) | overrides
    return Command(str(uuid.uuid4()), "integration.create", data)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were accepted."""
    sizes: list[int] = []
    real = evosaga.orchestrator.commands.accept.accept

    async def accept(*arguments: Any) -> Sequence[Accepted | Conflict]:
        sizes.append(len(arguments[3]))
        if any(request.input.name == "raises" for request in arguments[3]):
            raise ZeroDivisionError
        if any(request.input.name == "loses" for request in arguments[3]):
            raise asyncpg.SerializationError
        return await real(*arguments)

    monkeypatch.setattr("evosaga.orchestrator.commands.handler.accept", accept)
    return sizes


async def test_who_comes_while_a_transaction_is_out_shares_the_next_one(
    parts: AppContext, pool: Pool, batches: list[int]
) -> None:
    commands = [command() for _ in range(60)]
    answers = await asyncio.gather(*(parts.gate.submit(one) for one in commands))
    assert [answer.saga_id for answer in answers] == [one.saga_id for one in commands]
    assert {answer.kind for answer in answers} == {"started"}
    assert len(batches) <= 3
    for one in commands:
        assert (await outcome(pool, one.id)).status == "completed"
    assert await contradictions(pool) == []


async def test_the_same_command_twice_in_one_batch_is_one_saga(
    parts: AppContext, pool: Pool, batches: list[int]
) -> None:
    first, one, two = command(), command(), command()
    other = Command(two.id, two.type, two.data | {"name": "Luna"})
    told = await asyncio.gather(
        *(parts.gate.submit(each) for each in (first, one, one, two, other)),
        return_exceptions=True,
    )
    kinds = [t.kind if isinstance(t, Accepted) else t for t in told]
    assert kinds[:4] == ["started", "started", "duplicate", "started"]
    assert isinstance(kinds[4], BadCommand)
    assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == 3


async def test_one_that_makes_us_stumble_does_not_take_its_neighbours_down(
    parts: AppContext, batches: list[int]
) -> None:
    commands = [command(), command(), command(name="raises"), command()]
    told = await asyncio.gather(
        *(parts.gate.submit(one) for one in commands), return_exceptions=True
    )
    assert [type(one).__name__ for one in told] == [
        "Started",
        "Started",
        "ZeroDivisionError",
        "Started",
    ]


async def test_when_postgres_says_try_again_each_caller_is_told(
    parts: AppContext, batches: list[int]
) -> None:
    commands = [command(), command(name="loses"), command()]
    told = await asyncio.gather(
        *(parts.gate.submit(one) for one in commands), return_exceptions=True
    )
    assert [type(one).__name__ for one in told[1:]] == ["SerializationError"] * 2
    assert len(batches) <= 2, "nothing is gained by asking a busy database one by one"


async def test_a_caller_that_goes_away_has_not_taken_his_command_back(
    parts: AppContext, pool: Pool
) -> None:
    left = command()
    caller = asyncio.create_task(parts.gate.submit(left))
    await asyncio.sleep(0)
    caller.cancel()
    stays = await parts.gate.submit(command())
    assert (await outcome(pool, str(stays.saga_id))).status == "completed"
    assert (await outcome(pool, left.id)).status == "completed"


async def test_what_a_full_worker_has_no_room_for_is_left_to_any(
    settings: Settings, pool: Pool
) -> None:
    tight = settings.model_copy(update={"capacity": 1})
    async with parts_with_worker(tight) as parts:
        commands = [command() for _ in range(5)]
        await asyncio.gather(*(parts.gate.submit(one) for one in commands))
        assert parts.engine is not None
        assert len(parts.engine.driving) <= 1
        for one in commands:
            assert (await outcome(pool, one.id, 60)).status == "completed"
