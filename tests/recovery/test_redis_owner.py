"""One database has a Redis to itself: a second one is refused rather than fed its commands."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from evosaga.events import log_loss, relay_position
from evosaga.events.database import Pool
from evosaga.orchestrator.app import Broken, running_worker, serve_until
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.maintenance import redis_owner
from evosaga.orchestrator.maintenance.redis_owner import OWNER, RedisTaken
from tests.support.commandline import commandline, creation
from tests.support.databases import Databases
from tests.support.driving import count, create, outcome, publish
from tests.support.waiting import eventually


async def test_a_second_database_is_refused_on_a_redis_and_takes_no_command_of_the_first(
    settings: Settings, databases: Databases, pool: Pool, redis: Redis, tmp_path: Path
) -> None:
    name = await databases.take()
    second = settings.model_copy(update={"database_url": databases.url(name)})
    async with running_worker(settings):
        with pytest.raises(RedisTaken, match="redis-cli DEL evosaga:owner"):
            async with running_worker(second):
                pass
        evosaga = commandline(tmp_path, second).having(
            api_keys="me:a-key-of-the-tests-that-is-long"
        )
        for verb in ("worker", "api"):
            ran = await evosaga(verb)
            assert ran.code == 2
            assert "this Redis is another database's" in ran.err
        made = await outcome(pool, await publish(redis, create()))
        for words in (
            ("reconcile",),
            ("events", "republish", "--since", "1h"),
            (*creation(), "--no-wait"),
            ("delete", str(made.instance_name), "--no-wait"),
            ("letters", "--remove", "1-1"),
        ):
            ran = await evosaga(*words)
            assert ran.code == 2, words
            assert "this Redis is another database's" in ran.err
        told = await evosaga("doctor", "--json")
        assert told.code == 1
        [owner] = [check for check in told.json["checks"] if check["check"] == "owner"]
        assert owner["verdict"] == "bad"
        assert "redis-cli DEL evosaga:owner" in owner["cure"]
        assert await count(pool, "SELECT count(*) FROM evosaga.sagas") == 1
        for _ in range(4):
            saga = await outcome(pool, await publish(redis, create()))
            assert saga.status == "completed"
    await databases.give_back(name)


async def test_a_redis_that_lost_everything_is_claimed_again_by_whoever_lives(
    settings: Settings, redis: Redis, pool: Pool
) -> None:
    async with running_worker(settings) as worker:
        mark = await redis.get(OWNER)
        assert mark is not None
        await redis.flushall()

        async def claimed() -> bool:
            return bool(await redis.get(OWNER) == mark)

        await eventually(claimed, 10)
        assert not worker.failed.done()
    assert await redis.get(OWNER) == mark, "a restart finds its own"
    async with running_worker(settings):
        pass


async def test_a_worker_stops_when_another_database_is_given_its_redis_on_purpose(
    settings: Settings, redis: Redis, pool: Pool
) -> None:
    serving = asyncio.create_task(serve_until(asyncio.Event(), settings))
    await eventually(lambda: redis.exists(OWNER), 20)
    await redis.set(OWNER, "7/7")
    with pytest.raises(Broken, match="another database's"):
        await asyncio.wait_for(serving, 30)
    assert await redis.get(OWNER) == b"7/7"


async def test_a_new_database_on_a_used_redis_is_healthy_after_what_it_is_advised_to_delete(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    await relay_position.tell(redis, [b"{}"], [b"{}"], await relay_position.read(redis), 1000)
    await redis.set(OWNER, "7/7")
    with pytest.raises(RedisTaken) as refused:
        await redis_owner.claim(redis, await redis_owner.identity(pool))
    await redis.delete(*str(refused.value).rpartition("redis-cli DEL ")[2].split())
    assert await redis.keys("evosaga:*") == []
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
        assert saga.status == "completed"
    assert await log_loss.recorded(pool) is None


@pytest.mark.parametrize("value", ["", "somebody", "list"])
async def test_what_is_no_mark_of_ours_is_another_ones(
    redis: Redis, pool: Pool, value: str
) -> None:
    await (redis.lpush(OWNER, "x") if value == "list" else redis.set(OWNER, value))
    with pytest.raises(RedisTaken):
        await redis_owner.claim(redis, await redis_owner.identity(pool))


async def test_a_database_that_may_not_name_its_server_is_known_by_its_number(
    redis: Redis, pool: Pool
) -> None:
    database = await redis_owner.identity(pool)
    server, _, number = database.partition("/")
    assert server.isdecimal()
    await redis_owner.claim(redis, f"-/{number}")
    await redis_owner.claim(redis, database)
    with pytest.raises(RedisTaken):
        await redis_owner.claim(redis, "-/1")
    assert await redis_owner.look(redis, database) == f"-/{number}"
