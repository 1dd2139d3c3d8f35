"""Connections that break at the worst moment, or worse, do not break."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.events.database
import evosaga.orchestrator.commands.consumer
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.harness.chaos.proxy import Cut, Hole, Proxy, through, upstream_of
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.driving import story as told
from tests.support.sampled import sampled
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Between:
    """A proxy before each of the three servers, and the settings that lead through them."""

    evolution: Proxy
    postgres: Proxy
    valkey: Proxy
    settings: Settings


@pytest.fixture
async def between(settings: Settings) -> AsyncIterator[Between]:
    """The worker's connections go through proxies, the test's own do not."""
    urls = [str(settings.evolution_url), str(settings.database_url), str(settings.redis_url)]
    async with (
        Proxy(upstream_of(urls[0])) as evolution,
        Proxy(upstream_of(urls[1])) as postgres,
        Proxy(upstream_of(urls[2])) as valkey,
    ):
        proxies = (evolution, postgres, valkey)
        fields = ("evolution_url", "database_url", "redis_url")
        led: dict[str, Any] = {
            field: through(url, proxy)
            for field, url, proxy in zip(fields, urls, proxies, strict=True)
        }
        yield Between(*proxies, settings.model_copy(update=led))


@pytest.mark.fault("c3")
async def test_the_reply_of_a_create_is_lost_and_its_instance_is_adopted(
    between: Between, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    await between.evolution.arm(Cut(match=b"POST /instance/create"))
    async with running_worker(between.settings):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    assert between.evolution.stats["cut"] == 1
    assert len(evolution.journal.requests("create")) == 1
    assert [e.applied for e in evolution.journal if e.applied == "created"] == ["created"]


@pytest.mark.fault("c3")
async def test_a_create_that_was_cut_on_its_way_is_made_once(
    between: Between, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    await between.evolution.arm(Cut("up", after=20, match=b"POST /instance/create"))
    async with running_worker(between.settings):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    assert between.evolution.stats["cut"] == 1
    assert [e.applied for e in evolution.journal if e.applied == "created"] == ["created"]


COMMITS = {
    (b"COMMIT", 0): "accept",
    (b"COMMIT", 1): "evolution-and-postgres",
    (b"step.succeeded", 0): "first-outcome",
    (b"step.succeeded", 2): "third-outcome",
}


# A batch that no row joins is one statement, committed without a word of its own.
@pytest.mark.fault("a8", "b4")
@pytest.mark.parametrize(
    ("words", "nth"),
    sampled(COMMITS, keep=[(b"COMMIT", 0), (b"step.succeeded", 0)], id=COMMITS.__getitem__),
)
async def test_the_reply_to_a_commit_is_lost_and_nothing_is_done_or_told_twice(
    words: bytes,
    nth: int,
    between: Between,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    """The accepting commit, and those of the outcomes: all happened, and nobody heard of them."""
    async with running_worker(between.settings):
        await eventually(lambda: between.postgres.passed("down"))
        await between.postgres.arm(Cut(match=words, skip=nth))
        saga = await outcome(pool, await publish(redis, create()))
        assert saga.status == "completed"
        assert between.postgres.stats["cut"] == 1
    lines = await told(pool, saga)
    assert lines.count("saga.started") == lines.count("saga.completed") == 1
    # After an accepting commit that nobody heard of, the attempt counts as lost; look, then act.
    lost = len([line for line in lines if line.startswith("step.failed")])
    assert lost == (words == b"COMMIT" and nth == 0)
    assert len(evolution.journal.requests("create")) == 1
    assert await contradictions(pool) == []


@pytest.mark.fault("o5")
async def test_connections_to_postgres_go_dead_without_a_word_and_the_sagas_go_on(
    between: Between,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half-open: what is sent vanishes, nothing comes back, and nobody is told."""
    monkeypatch.setattr(evosaga.events.database, "_COMMAND_TIMEOUT", 1.0)
    evolution.arm("slow", operation="create", times=None, seconds=0.2)
    async with running_worker(between.settings) as worker:
        ids = [await publish(redis, create()) for _ in range(10)]
        await eventually(lambda: len(evolution.journal.entries) >= 5)
        await between.postgres.arm(Hole())
        await eventually(lambda: between.postgres.stats["hole"] >= 2)
        await between.postgres.heal()
        for id_ in ids:
            assert (await outcome(pool, id_, 30)).status == "completed"
        assert not worker.failed.done()
    created = [e.name for e in evolution.journal if e.applied == "created"]
    assert len(created) == len(set(created)) == 10
    assert await contradictions(pool) == []


# The client tries three times by itself; one whose reply alone was lost does not come again.
@pytest.mark.fault("a7")
@pytest.mark.parametrize(
    ("direction", "times"), sampled([("up", 4), ("down", 3)], keep=[("down", 3)])
)
async def test_an_acknowledgement_is_lost_and_the_command_is_known_when_it_comes_again(
    direction: Any,
    times: int,
    between: Between,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.3)
    await between.valkey.arm(Cut(direction, match=b"XACK", times=times))
    async with running_worker(between.settings):
        saga = await outcome(pool, await publish(redis, create()))
        assert saga.status == "completed"
        await eventually(lambda: between.valkey.stats["cut"] == times, 20)
        await eventually(lambda: nothing_pending(redis), 20)
    assert (await told(pool, saga)).count("saga.started") == 1
    assert await dead_letters(redis) == []


@pytest.mark.fault("h8")
async def test_the_reader_comes_back_from_a_connection_that_is_open_and_dead(
    between: Between, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(between.settings) as worker:
        await outcome(pool, await publish(redis, create()))
        await between.valkey.arm(Hole(("down",), match=b"XREADGROUP"))
        await eventually(lambda: between.valkey.stats["hole"])
        ids = [await publish(redis, create()) for _ in range(5)]
        await between.valkey.heal()
        for id_ in ids:
            assert (await outcome(pool, id_, 30)).status == "completed"
        assert worker.reader.healthy
        await eventually(lambda: nothing_pending(redis), 20)
