"""Limits of a resource that all workers share."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga import (
    Command,
    Done,
    InCommit,
    Limit,
    Outcome,
    Saga,
    StepContext,
    compensatable,
    domain,
    pivot,
    retryable,
)
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domain
from evosaga.orchestrator.engine.limits import Limiter, keys, look
from evosaga.orchestrator.maintenance.rebuild import rebuild
from evosaga.orchestrator.queries.sagas import find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.worker import running_worker
from evosaga.sagas.definition import DefinitionError
from evosaga.sagas.limits import LimitError
from tests.support.driving import outcome, publish, story
from tests.support.waiting import eventually


class Pay(Command):
    command = "bill.pay"


class Bank:
    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.charged = 0


async def charge(ctx: StepContext[Pay, Bank]) -> Outcome:
    bank = ctx.services
    bank.inside += 1
    bank.most = max(bank.most, bank.inside)
    bank.charged += 1
    await asyncio.sleep(0.02)
    bank.inside -= 1
    return Done()


async def nothing(_ctx: StepContext[Pay, Bank]) -> Outcome:
    return Done()


def at_the_bank(bank: Bank, *limits: Limit, of_domain: Limit | None = None) -> Domain[Bank]:
    @asynccontextmanager
    async def services() -> AsyncIterator[Bank]:
        yield bank

    pay = Saga(
        name="pay-a-bill",
        version=1,
        command=Pay.command,
        input=Pay,
        steps=(
            compensatable("note", do=nothing, undo=nothing),
            pivot("charge", do=charge, limits=limits),
            retryable("tell", do=nothing),
        ),
    )
    more = [of_domain] if of_domain else []
    return domain("payments", pay, services=services, limits=more)


def bill() -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "type": "bill.pay", "data": {}}


async def test_two_workers_together_have_no_more_attempts_out_than_the_limit_says(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    bank = Bank()
    payments = at_the_bank(bank, Limit("bank", concurrency=2))
    async with running_worker(settings, payments) as one, running_worker(settings, payments) as two:
        bills = [await publish(redis, bill()) for _ in range(24)]
        ends = [await outcome(pool, id_) for id_ in bills]
        asked = [worker.engine.limiter for worker in (one, two)]
    assert {saga.status for saga in ends} == {"completed"}
    assert bank.most == 2
    assert sum(limiter.granted["bank"] for limiter in asked if limiter) == 24
    assert (await look(redis, ["bank"]))["bank"].held == 0
    assert await redis.zcard(keys("bank")[1]) == 0
    plain = [
        "saga.started",
        *(f"step.{e} {s}" for s in ("note", "charge", "tell") for e in ("started", "succeeded")),
        "saga.completed",
    ]
    assert {tuple(await story(pool, saga)) for saga in ends} == {tuple(plain)}


async def test_a_rate_spreads_what_begins_evenly(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    bank = Bank()
    payments = at_the_bank(bank, of_domain=Limit("bank", rate="20/s"))
    began = time.monotonic()
    async with running_worker(settings, payments):
        bills = [await publish(redis, bill()) for _ in range(3)]
        for id_ in bills:
            assert (await outcome(pool, id_)).status == "completed"
    # The limit is the domain's, so three bills have nine attempts, and eight gaps between them.
    assert time.monotonic() - began >= 8 * 0.05


async def test_what_waits_for_long_says_so_and_its_history_says_nothing(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    bank = Bank()
    limit = Limit("bank", concurrency=1)
    payments, stranger = at_the_bank(bank, limit), uuid.uuid4()
    limiter = Limiter(redis)
    assert await limiter.enter([limit], stranger, "charge/forward", 60.0) is None
    async with running_worker(settings, payments):
        id_ = await publish(redis, bill())

        async def limited() -> bool:
            saga = await find_saga(pool, id_)
            return saga is not None and saga.code == "limited"

        await eventually(limited)
        saga = await find_saga(pool, id_)
        assert saga is not None
        assert (saga.message, saga.step) == ("waits for a place at bank", "charge")
        told = await why_of(pool, payments.sagas, saga)
        assert told.headline == "It waits for a place at bank."
        assert "bank (1 at once)" in told.details[0]
        assert (await story(pool, saga))[1:] == ["step.started note", "step.succeeded note"]
        assert (await rebuild(pool, payments.sagas, check=True)).different == 0
        await limiter.leave([limit], stranger, "charge/forward")
        assert (await outcome(pool, id_)).status == "completed"
    assert bank.charged == 1


async def test_an_effect_is_recorded_before_its_place_is_given_back(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave, told = Limiter.leave, list[bool]()

    async def asked(self: Limiter, *rest: Any) -> None:
        saga = await find_saga(pool, id_)
        assert saga is not None
        told.append("step.succeeded charge" in await story(pool, saga))
        await leave(self, *rest)

    monkeypatch.setattr(Limiter, "leave", asked)
    command = bill()
    id_ = command["id"]
    async with running_worker(settings, at_the_bank(Bank(), Limit("bank", concurrency=1))):
        await publish(redis, command)
        assert (await outcome(pool, id_)).status == "completed"
    assert told == [True]
    assert (await look(redis, ["bank"]))["bank"].held == 0


async def test_turns_are_kept_and_who_does_not_come_is_passed_by(redis: Redis) -> None:
    limit, limiter = Limit("desk", concurrency=1), Limiter(redis)
    first, second, third = (uuid.uuid4() for _ in range(3))

    async def gets(who: uuid.UUID) -> bool:
        return await limiter.enter([limit], who, "step/forward", 10.0) is None

    assert await gets(first)
    assert await gets(first), "whoever takes its saga over finds the place still its own"
    assert not await gets(second)
    assert not await gets(third)
    await limiter.leave([limit], first, "step/forward", 0.01)
    assert not await gets(third), "the second comes first"
    assert await gets(second)
    await limiter.leave([limit], second, "step/forward", 0.01)
    assert await gets(third)
    assert not await gets(second)
    await limiter.leave([limit], third, "step/forward")
    # The second does not come in its time, so the first does not wait for it.
    about = keys("desk")[2]
    await redis.execute_command("HSET", about, f"{second}/step/forward", "1")  # type: ignore[no-untyped-call]
    assert await gets(first)


async def test_a_place_whose_holder_was_killed_ends_by_itself(redis: Redis) -> None:
    limit, limiter = Limit("desk", concurrency=1), Limiter(redis)
    assert await limiter.enter([limit], uuid.uuid4(), "step/forward", -4.8) is None  # 0.2 s in all

    async def free() -> bool:
        return await limiter.enter([limit], uuid.UUID(int=1), "step/forward", 10.0) is None

    assert not await free()
    await eventually(free, 5)


async def test_of_several_limits_all_are_had_or_none(redis: Redis) -> None:
    desk, door = Limit("desk", concurrency=1), Limit("door", concurrency=1)
    limiter, first, second = Limiter(redis), uuid.uuid4(), uuid.uuid4()
    assert await limiter.enter([door], first, "s", 10.0) is None
    full = await limiter.enter([door, desk], second, "s", 10.0)
    assert full is not None
    assert full.message == "waits for a place at door"
    assert (await look(redis, ["desk"]))["desk"].held == 0


async def test_many_that_need_two_limits_get_on_as_fast_as_the_narrower_one_allows(
    redis: Redis,
) -> None:
    limits = [Limit("a-rate", rate="20/s"), Limit("seat", concurrency=1)]
    limiter, done = Limiter(redis), 0

    async def one() -> None:
        nonlocal done
        me = uuid.uuid4()
        while (full := await limiter.enter(limits, me, "s", 10.0)) is not None:  # noqa: ASYNC110
            await asyncio.sleep(full.again)
        await asyncio.sleep(0.07)  # longer than the rate's gap: the seat is the narrower one
        await limiter.leave(limits, me, "s", 0.07)
        done += 1

    tasks = [asyncio.create_task(one()) for _ in range(100)]
    await asyncio.wait(tasks, timeout=3.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert 10 <= done <= 43, "43 by the seat"


async def test_what_was_not_used_costs_neither_its_turn_nor_the_rate(redis: Redis) -> None:
    rate, desk = Limit("a-rate", rate="1/min"), Limit("desk", concurrency=1)
    limiter, first, second = Limiter(redis), uuid.uuid4(), uuid.uuid4()
    assert await limiter.enter([desk], first, "s", 10.0) is None
    assert await limiter.enter([rate, desk], second, "s", 10.0) is not None
    number = await redis.zscore(keys("a-rate")[1], f"{second}/s")
    assert await limiter.enter([rate, desk], second, "s", 10.0) is not None
    assert await redis.zscore(keys("a-rate")[1], f"{second}/s") == number
    await limiter.leave([desk], first, "s", 0.01)
    assert await limiter.enter([rate, desk], second, "s", 10.0) is None


async def test_a_worker_does_not_give_back_the_place_of_the_one_that_took_over(
    redis: Redis,
) -> None:
    desk, saga = Limit("desk", concurrency=1), uuid.uuid4()
    paused, other = Limiter(redis), Limiter(redis)
    assert await paused.enter([desk], saga, "s", 10.0) is None
    assert await other.enter([desk], saga, "s", 10.0) is None
    await paused.leave([desk], saga, "s", 0.01)
    assert (await look(redis, ["desk"]))["desk"].held == 1
    await other.leave([desk], saga, "s", 0.01)
    assert (await look(redis, ["desk"]))["desk"].held == 0
    assert not await redis.hexists(keys("desk")[2], f"token:{saga}/s")


async def test_without_redis_nobody_gets_a_place() -> None:
    away = streams.connect("redis://127.0.0.1:1/0")
    full = await Limiter(away).enter([Limit("bank", rate="1/s")], uuid.uuid4(), "s", 1.0)
    assert full is not None
    assert full.message == "waits for a place at bank, which only Redis knows, and it is away"
    await away.aclose()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "The Bank", "concurrency": 1}, "a name has small letters"),
        ({"name": "bank"}, "limits nothing: give it concurrency=4 or rate='10/s'"),
        ({"name": "bank", "concurrency": 0}, "concurrency is at least 1"),
        ({"name": "bank", "rate": "ten/s"}, "such as '10/s'"),
        ({"name": "bank", "rate": "0/s"}, "such as '10/s'"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(LimitError, match=said):
        Limit(**wrong)


def test_what_joins_a_commit_cannot_wait_for_a_place() -> None:
    async def join(_connection: Any, _contexts: Any) -> Any:
        raise AssertionError

    with pytest.raises(DefinitionError, match="joins the commit, so it can't wait for a place"):
        Saga(
            name="wrong",
            version=1,
            command="wrong",
            input=Pay,
            steps=(pivot("note", do=InCommit(join), limits=[Limit("bank", concurrency=1)]),),
        )
