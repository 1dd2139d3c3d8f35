"""A flood of one organization delays no other: turns at the stream, and a share of each worker."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from evosaga import domain
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.commands.fair_queue import FairQueue, organization_of
from evosaga.orchestrator.commands.subscriber import Message
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.domain import Domain
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.queries.sagas import find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.worker import running_worker
from evosaga.sagas.context import StepContext
from evosaga.sagas.definition import Admission, Refusal, Saga, retryable
from evosaga.sagas.outcome import Done, Outcome
from evosaga.sagas.registry import registry_of
from tests.support.driving import outcome, publish
from tests.support.waiting import eventually

A, B, C = (uuid.UUID(int=n) for n in (1, 2, 3))


class Errand(BaseModel):
    """A task of an organization."""

    organization_id: uuid.UUID
    seconds: float = 0.2


async def admit(
    _connection: Any, _services: object, errands: Sequence[tuple[uuid.UUID, Errand]]
) -> list[Admission | Refusal]:
    return [
        Admission(f"errand/{saga_id}", organization_id=errand.organization_id)
        for saga_id, errand in errands
    ]


async def run_it(ctx: StepContext[Errand, object]) -> Outcome:
    await asyncio.sleep(ctx.input.seconds)
    return Done()


ERRAND = Saga(
    name="errand",
    version=1,
    command="errand.run",
    input=Errand,
    admit=admit,
    steps=(retryable("run", do=run_it),),
)


@asynccontextmanager
async def nothing(_: Settings, __: Pool, ___: Redis, ____: Lease | None) -> AsyncIterator[None]:
    yield None


DOMAIN: Domain[Any] = Domain(registry_of([ERRAND]), nothing, name="errands")


def errand(organization: uuid.UUID, **data: Any) -> bytes:
    told = {"organization_id": str(organization)} | data
    return json.dumps({"id": str(uuid.uuid4()), "type": "errand.run", "data": told}).encode()


async def flood(redis: Redis, organization: uuid.UUID, number: int, **data: Any) -> None:
    pipeline = redis.pipeline(transaction=False)
    for _ in range(number):
        pipeline.xadd(streams.COMMANDS, {streams.FIELD: errand(organization, **data)})
    await pipeline.execute()


async def latency(pool: Pool, redis: Redis, organization: uuid.UUID) -> float:
    """Seconds from publishing a command to the end of its saga."""
    body = errand(organization, seconds=0.0)
    began = time.monotonic()
    await redis.xadd(streams.COMMANDS, {streams.FIELD: body})
    done = await outcome(pool, json.loads(body)["id"], 60)
    assert done.status == "completed"
    return time.monotonic() - began


async def test_a_flood_of_one_organization_leaves_anothers_command_as_fast_as_ever(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    small = settings.model_copy(update={"capacity": 40, "organization_share": 0.5})
    async with running_worker(small, DOMAIN) as worker:
        idle = min([await latency(pool, redis, B) for _ in range(3)])
        await flood(redis, A, 1500, seconds=0.3)
        beside = [await latency(pool, redis, B) for _ in range(3)]
        left = await pool.fetchval("SELECT count(*) FROM evosaga.sagas WHERE status = 'running'")
        assert left > 100, "the flood is still there"
        assert worker.engine.share == 20
        await eventually(lambda: 0 < worker.engine.driving_of(A) <= 20)
        # In turn behind all of it, each would take the 1500 * 0.3 / 40 = 11 s of the flood.
        assert min(beside) < idle + 2.0
        await eventually(lambda: the_last_is_explained(pool), message="why to name the share")
        refused = "SELECT count(*) FROM evosaga.sagas WHERE status IN ('rejected', 'failed')"
        assert await pool.fetchval(refused) == 0, "nothing that was accepted is refused"


async def the_last_is_explained(pool: Pool) -> bool:
    """Whether ``why`` of the saga whose turn comes last names the variable; now and then fewer are
    driven than would be worth a word.
    """
    waiting = await pool.fetchval(
        "SELECT saga_id FROM evosaga.sagas WHERE owner IS NULL AND due_at <= now() "
        "ORDER BY due_at DESC LIMIT 1"
    )
    view = await find_saga(pool, str(waiting))
    assert view is not None
    told = await why_of(pool, DOMAIN.sagas, view)
    return any("EVOSAGA_ORGANIZATION_SHARE" in detail for detail in told.details)


async def test_what_waits_for_its_turn_is_driven_to_its_end(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    small = settings.model_copy(update={"capacity": 10, "organization_share": 0.3})
    async with running_worker(small, DOMAIN) as worker:
        await flood(redis, A, 30, seconds=0.0)
        ended = "SELECT count(*) FROM evosaga.sagas WHERE status = 'completed'"

        async def all_done() -> bool:
            return bool(await pool.fetchval(ended) == 30)

        await eventually(all_done, 60)
        assert worker.engine.largest == {}
        assert worker.engine.driving_of(A) == 0


async def test_what_was_read_and_not_accepted_when_a_worker_stops_is_obeyed_by_the_next(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    small = settings.model_copy(update={"capacity": 2, "organization_share": 1.0})
    async with running_worker(small, DOMAIN):
        await flood(redis, A, 40, seconds=0.2)
        await eventually(lambda: anything(pool), 20)
    async with running_worker(settings, DOMAIN):
        await eventually(lambda: completed(pool, 40), 60)


async def anything(pool: Pool) -> bool:
    return bool(await pool.fetchval("SELECT count(*) FROM evosaga.sagas") > 0)


async def completed(pool: Pool, number: int) -> bool:
    ended = "SELECT count(*) FROM evosaga.sagas WHERE status = 'completed'"
    return bool(await pool.fetchval(ended) == number)


class Visit(BaseModel):
    """A task whose organization has a name of its own."""

    clinic: uuid.UUID


async def visit(ctx: StepContext[Visit, asyncio.Event]) -> Outcome:
    await ctx.services.wait()
    return Done()


async def test_the_share_counts_whose_saga_it_is_as_its_definition_says(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    leave = asyncio.Event()

    @asynccontextmanager
    async def services() -> AsyncIterator[asyncio.Event]:
        yield leave

    saga = Saga(
        name="visit",
        version=1,
        command="visit.pay",
        input=Visit,
        organization=lambda asked: asked.clinic,
        steps=(retryable("run", do=visit),),
    )
    async with running_worker(settings, domain("visits", saga, services=services)) as worker:
        told = {"id": str(uuid.uuid4()), "type": "visit.pay", "data": {"clinic": str(A)}}
        id_ = await publish(redis, told)

        async def counted(number: int) -> bool:
            return worker.engine.driving_of(A) == number

        await eventually(lambda: counted(1))
        leave.set()
        assert (await outcome(pool, id_)).status == "completed"
        await eventually(lambda: counted(0))


# --- turns ------------------------------------------------------------------------------------


def message(number: int, organization: uuid.UUID | None) -> Message:
    body = b"{}" if organization is None else errand(organization)
    return Message(f"{number}-0".encode(), {b"data": body})


def test_one_command_of_each_organization_after_another_and_each_ones_in_their_order() -> None:
    queue = FairQueue()
    queue.add(message(n, A) for n in range(10))
    queue.add([message(10, B), message(11, B), message(12, C), message(13, None)])
    taken = queue.take(7)
    assert [whose for whose, _ in taken] == [A, B, C, None, A, B, A]
    assert [int(m.id[:-2]) for whose, m in taken if whose == A] == [0, 1, 2]
    assert len(queue) == 7
    assert [whose for whose, _ in queue.take(100)] == [A] * 7
    assert queue.take(1) == []


def test_a_command_that_waits_here_already_is_not_added_again() -> None:
    queue = FairQueue()
    queue.add([message(1, A)])
    queue.add([message(1, A), message(2, A)])
    assert len(queue.take(10)) == 2


@pytest.mark.parametrize(
    ("crowd", "flooded"),
    [
        ([A] * 100, True),
        ([A] * 60 + [B] * 40, True),
        ([None] * 100, False),
        ([None] * 90 + [A] * 10, False),
        ([uuid.UUID(int=n) for n in range(100)], False),
        ([uuid.UUID(int=n // 3) for n in range(99)], False),
        ([], False),
    ],
)
def test_only_a_crowd_of_few_organizations_is_a_flood(
    crowd: list[uuid.UUID | None], flooded: bool
) -> None:
    queue = FairQueue()
    queue.add(message(n, whose) for n, whose in enumerate(crowd))
    assert queue.flooded is flooded


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b'{"organization_id": 5}',
        b'{"organization_id": "no uuid"}',
        b'{"organization_id": "00000000-0000-0000-0000-00000000000"}',
    ],
)
def test_what_names_no_organization_has_turns_of_its_own(body: bytes) -> None:
    assert organization_of(Message(b"1-0", {b"data": body})) is None


@pytest.mark.parametrize("value", ["0", "-0.1", "1.1", "half"])
def test_a_share_that_is_none_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("EVOSAGA_ORGANIZATION_SHARE", value)
    with pytest.raises(SettingsError, match="EVOSAGA_ORGANIZATION_SHARE"):
        load_settings(_env_file=None)
