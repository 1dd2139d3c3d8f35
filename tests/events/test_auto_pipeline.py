"""Commands that are asked for at the same time share a round trip, and nothing else."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from evosaga.orchestrator.local.handle import LocalServer


async def round_trips(redis: Redis) -> int:
    """How often Valkey was read from so far."""
    stats: dict[str, Any] = await redis.info("stats")
    return int(stats["total_reads_processed"])


async def test_everybody_gets_the_answer_to_what_they_asked(redis: Redis) -> None:
    answers = await asyncio.gather(*(redis.incrby(f"n:{i}", i) for i in range(1200)))
    assert answers == list(range(1200))


async def test_what_is_asked_together_travels_together(redis: Redis) -> None:
    await redis.set("warm", "up")
    before = await round_trips(redis)
    await asyncio.gather(*(redis.get("warm") for _ in range(400)))
    assert await round_trips(redis) - before < 40


async def test_an_error_belongs_to_its_own_command_alone(redis: Redis) -> None:
    await redis.set("text", "x")
    wrong, right = await asyncio.gather(
        redis.lpush("text", "y"), redis.get("text"), return_exceptions=True
    )
    assert isinstance(wrong, ResponseError)
    assert right == b"x"


async def test_answers_are_read_as_each_command_wants_them(redis: Redis) -> None:
    await redis.hset("h", mapping={"a": "1"})
    info, fields, there = await asyncio.gather(
        redis.info("server"), redis.hgetall("h"), redis.exists("h")
    )
    assert "redis_version" in info
    assert fields == {b"a": b"1"}
    assert there == 1


async def test_one_who_gives_up_waiting_takes_nothing_from_the_others(redis: Redis) -> None:
    hasty = asyncio.ensure_future(redis.get("a"))
    patient = asyncio.ensure_future(redis.set("b", "there"))
    await asyncio.sleep(0)
    hasty.cancel()
    assert await patient
    assert await redis.get("b") == b"there"
    with pytest.raises(asyncio.CancelledError):
        await hasty


async def test_without_a_server_everybody_is_told_and_with_it_all_goes_on(
    own_valkey: LocalServer, own_redis: Redis
) -> None:
    await own_redis.set("a", "1")
    own_valkey.kill()
    told = await asyncio.gather(*(own_redis.get("a") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, RedisError | OSError) for answer in told)
    own_valkey.start_again()
    assert await own_redis.set("a", "2")


async def test_many_tasks_lose_nothing(redis: Redis) -> None:
    async def count() -> None:
        for _ in range(50):
            await redis.incr("all")

    await asyncio.gather(*(count() for _ in range(20)))
    assert await redis.get("all") == b"1000"
