"""Sentinels name the master: a failover is waited for, and nothing is lost."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import commandline
from tests.support.driving import create, delete, entries, outcome, publish
from tests.support.valkeys import SERVICE, Watched, watched
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
async def servers_watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    async with watched(tmp_path_factory.mktemp("sentinel")) as made:
        yield made


@pytest.fixture
def settings(settings: Settings, servers_watched: Watched) -> Settings:
    return settings.model_copy(update={"redis_url": servers_watched.url})


async def test_a_url_that_does_not_fit_the_sentinels_is_refused_with_the_right_one(
    settings: Settings, servers_watched: Watched, tmp_path: Path
) -> None:
    evosaga = commandline(tmp_path, settings)
    sentinel = servers_watched.sentinels[0]
    master = await servers_watched.master()
    host = f"127.0.0.1:{sentinel.port}"
    for url, words in (
        (sentinel.url, f"set EVOSAGA_REDIS_URL to redis+sentinel://{host}/{SERVICE}/0"),
        (servers_watched.url.replace(SERVICE, "another"), f"they watch {SERVICE}"),
        (f"redis+sentinel://127.0.0.1:{master.port}/{SERVICE}", f"redis://127.0.0.1:{master.port}"),
        (f"redis+cluster://127.0.0.1:{master.port}/", "it is in no cluster: set"),
    ):
        ran = await evosaga.having(redis_url=url)("worker")
        assert (ran.code, words in ran.err) == (2, True), (url, ran.err)
    told = await evosaga("doctor", "--json")
    found = {check["check"]: check for check in told.json["checks"]}
    assert found["redis"]["verdict"] == "ok"
    assert "set min-replicas-to-write" in found["replicas"]["cure"]
    await master.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    told = await evosaga("doctor", "--json")
    await master.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    found = {check["check"]: check for check in told.json["checks"]}
    assert found["replicas"]["verdict"] == "ok"


async def test_the_master_is_followed_and_what_the_old_one_had_alone_is_told_again(
    settings: Settings, servers_watched: Watched, pool: Pool
) -> None:
    old = await servers_watched.master()
    [heir] = [one for one in servers_watched.servers if one is not old]
    first, second, third = (create() for _ in range(3))
    async with streams.connect(servers_watched.url) as redis, running_worker(settings) as worker:
        await publish(redis, first)
        assert (await outcome(pool, first["id"])).status == "completed"
        heir.pause()
        await publish(redis, second)  # which the replica never hears of
        made = await outcome(pool, second["id"])
        old.kill()
        heir.wake()

        async def led() -> bool:
            return await servers_watched.master() is heir

        await eventually(led, 30, message="the Sentinels to promote the replica")
        await asyncio.wait_for(_publish(redis, third), 30)
        assert (await outcome(pool, third["id"], 60)).status == "completed"

        async def all_told() -> bool:
            rows = await pool.fetch("SELECT saga_id, sequence FROM evosaga.saga_events")
            told = {json.loads(f[b"data"])["id"] for _, f in await entries(redis, streams.EVENTS)}
            return told >= {f"{row['saga_id']}:{row['sequence']}" for row in rows}

        await eventually(all_told, 30, message="every event to be told on the new master")
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))), 30)
        assert (made.status, gone.status) == ("completed", "completed")
        await eventually(lambda: worker.reader.healthy, 30)
        assert not worker.failed.done()


async def _publish(redis: Redis, command: dict[str, object]) -> None:
    while True:
        try:
            await publish(redis, command)
        except RedisConnectionError:
            await asyncio.sleep(0.1)
        else:
            return
