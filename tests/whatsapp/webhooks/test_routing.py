"""The cache reader of routing workers: quick on a hit, right on a miss, never fooled."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.routing import (
    Change,
    ClinicCache,
    Route,
    RoutingUnavailable,
    follow,
    routes,
)
from evosaga.sagas.whatsapp.steps import routing_key
from evosaga.sagas.whatsapp.steps.notify_workers import ADDED, REMOVED
from tests.support.waiting import eventually

INSERT = """
INSERT INTO healthcare.integrations (organization_id, config, whatsapp_number)
VALUES ($1, jsonb_build_object('instance_name', $2::text, 'clinic_id', $3::text,
        'name', 'Clínica Sol'), $4)
RETURNING id
"""


class Counting:
    """A pool that counts what it is asked, and can be made to wait."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.queries = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, query: str, *values: Any) -> Any:
        self.queries += 1
        rows = await self.pool.fetch(query, *values)
        await self.gate.wait()
        return rows


@pytest.fixture
def counting(pool: Pool) -> Counting:
    return Counting(pool)


@pytest.fixture
def clinics(redis: Redis, counting: Counting) -> ClinicCache:
    return ClinicCache(redis, counting)  # type: ignore[arg-type]


async def insert(pool: Pool, name: str, number: str | None = None) -> Route:
    organization, clinic = uuid.uuid4(), str(uuid.uuid4())
    await pool.fetchval(INSERT, organization, name, clinic, number)
    return (await routes(pool, [name]))[name]


def at(route: Route) -> tuple[Any, ...]:
    return route.integration_id, route.organization_id, route.clinic_id, route.whatsapp_number


async def remove(redis: Redis, pool: Pool, route: Route) -> None:
    """What a delete saga does: the row, then the key, leaving the mark."""
    await pool.execute("DELETE FROM healthcare.integrations WHERE id = $1", route.integration_id)
    name = route.instance_name
    keys = (
        f"evosaga:removed:{name}",
        routing_key.key(name),
        routing_key.filled_key(name),
        routing_key.qr_key(name),
    )
    await redis.eval(routing_key._REMOVE, len(keys), *keys, str(route.integration_id), "7200")


class TestAHit:
    async def test_makes_no_query(
        self, clinics: ClinicCache, counting: Counting, pool: Pool
    ) -> None:
        route = await insert(pool, "ours", "5511999990000")
        assert await clinics.get("ours") == route
        assert counting.queries == 1
        for _ in range(200):
            assert await clinics.get("ours") == route
        assert counting.queries == 1

    async def test_reads_what_the_create_saga_has_put_there(
        self, clinics: ClinicCache, counting: Counting, redis: Redis
    ) -> None:
        route = Route(uuid.uuid4(), "ours", str(uuid.uuid4()), str(uuid.uuid4()), "Clínica Sol")
        assert await clinics.set(route)
        assert await clinics.get("ours") == route
        assert counting.queries == 0
        assert json.loads(await redis.get("whatsapp:instance:ours") or b"") == {
            "clinic_id": route.clinic_id,
            "organization_id": route.organization_id,
            "name": "Clínica Sol",
            "whatsapp_number": None,
        }
        assert 0 < await redis.ttl("whatsapp:instance:ours") <= 3600

    async def test_works_with_a_client_that_decodes(
        self, servers: Any, clinics: ClinicCache, counting: Counting, pool: Pool
    ) -> None:
        route = await insert(pool, "ours")
        await clinics.get("ours")
        decoding = Redis.from_url(servers.redis, decode_responses=True)
        other = ClinicCache(decoding, counting)  # type: ignore[arg-type]
        assert await other.get("ours") == route
        assert counting.queries == 1
        await decoding.aclose()


class TestAMiss:
    @pytest.mark.fault("f6")
    async def test_asks_postgres_and_fills_again(
        self, clinics: ClinicCache, counting: Counting, pool: Pool, redis: Redis
    ) -> None:
        route = await insert(pool, "ours")
        for forget in (redis.flushall, lambda: clinics.invalidate("ours")):
            await forget()
            before = counting.queries
            assert await clinics.get("ours") == route
            assert await clinics.get("ours") == route
            assert counting.queries == before + 1

    async def test_an_unknown_instance_is_nobodys(self, clinics: ClinicCache, redis: Redis) -> None:
        assert await clinics.get("unknown") is None
        assert await redis.keys("*unknown*") == []

    async def test_a_disabled_integration_is_nobodys(
        self, clinics: ClinicCache, pool: Pool
    ) -> None:
        await insert(pool, "ours")
        await pool.execute("UPDATE healthcare.integrations SET enabled = false")
        assert await clinics.get("ours") is None

    async def test_a_stampede_asks_once(
        self, clinics: ClinicCache, counting: Counting, pool: Pool
    ) -> None:
        route = await insert(pool, "ours")
        counting.gate.clear()
        asking = [asyncio.create_task(clinics.get("ours")) for _ in range(200)]
        await eventually(lambda: counting.queries)
        asking[0].cancel()  # whoever loses patience takes nobody else with them
        await asyncio.sleep(0.05)
        counting.gate.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [route] * 199
        assert counting.queries == 1

    async def test_an_error_is_for_those_who_asked_then(
        self, clinics: ClinicCache, counting: Counting, pool: Pool
    ) -> None:
        route = await insert(pool, "ours")
        await counting.pool.execute("ALTER TABLE healthcare.integrations RENAME TO away")
        with pytest.raises(Exception, match="does not exist"):
            await clinics.get("ours")
        await counting.pool.execute("ALTER TABLE healthcare.away RENAME TO integrations")
        assert await clinics.get("ours") == route


@pytest.mark.fault("f1")
async def test_without_redis_postgres_answers(
    pool: Pool, own_redis: Redis, own_valkey: LocalServer
) -> None:
    route = await insert(pool, "ours")
    clinics = ClinicCache(own_redis, pool)
    await asyncio.to_thread(own_valkey.stop)
    assert await clinics.get("ours") == route
    await asyncio.to_thread(own_valkey.start_again)
    assert await clinics.get("ours") == route
    assert await own_redis.exists("whatsapp:instance:ours")


async def test_without_either_nobody_is_told_that_there_is_no_such_clinic(redis: Redis) -> None:
    class Away:
        async def fetch(self, *_: Any) -> Any:
            raise ConnectionRefusedError

    clinics = ClinicCache(redis, Away())  # type: ignore[arg-type]
    with pytest.raises(RoutingUnavailable, match="Postgres"):
        await clinics.get("ours")
    await redis.set("whatsapp:instance:ours", json.dumps({"organization_id": "theirs"}))
    with pytest.raises(RoutingUnavailable):
        await clinics.get("ours")


class TestF8Poison:
    GARBAGE = (
        "",
        "garbage",
        "[]",
        "null",
        "{}",
        '{"clinic_id": 5, "organization_id": "x", "name": null, "whatsapp_number": []}',
        "[" * 5000,
        "\ud83d".encode("utf-8", "surrogatepass"),
    )

    @pytest.mark.fault("f8")
    @pytest.mark.parametrize("poison", GARBAGE)
    async def test_garbage_is_not_believed_and_put_right(
        self, clinics: ClinicCache, pool: Pool, redis: Redis, poison: str
    ) -> None:
        route = await insert(pool, "ours")
        await clinics.get("ours")
        await redis.set("whatsapp:instance:ours", poison)
        assert await clinics.get("ours") == route
        assert await redis.get("whatsapp:instance:ours") == route.value().encode()
        assert await redis.ttl("whatsapp:instance:ours") > 0

    @pytest.mark.fault("f8")
    async def test_a_well_formed_key_of_another_organization_is_not_believed(
        self, clinics: ClinicCache, pool: Pool, redis: Redis
    ) -> None:
        route = await insert(pool, "ours")
        theirs = json.loads(route.value()) | {"organization_id": str(uuid.uuid4())}
        for filled in (False, True):
            await redis.flushall()
            if filled:
                await clinics.get("ours")
            await redis.set("whatsapp:instance:ours", json.dumps(theirs))
            assert await clinics.get("ours") == route
            assert await redis.get("whatsapp:instance:ours") == route.value().encode()

    @pytest.mark.fault("f8")
    async def test_what_the_seal_says_may_be_garbage_too(
        self, clinics: ClinicCache, pool: Pool, redis: Redis
    ) -> None:
        route = await insert(pool, "ours")
        for seal in (b"", b"x", b"a b c", b"\xff", b"1 2 3 4"):
            await redis.set("whatsapp:instance:ours", route.value())
            await redis.set("evosaga:filled:ours", seal)
            assert await clinics.get("ours") == route

    async def test_a_key_without_a_row_is_dropped(self, clinics: ClinicCache, redis: Redis) -> None:
        await redis.set("whatsapp:instance:stale", "{}")
        assert await clinics.get("stale") is None
        assert await redis.exists("whatsapp:instance:stale") == 0


class TestNothingIsResurrected:
    @pytest.mark.fault("f7")
    async def test_a_reader_that_slept_through_a_delete_is_refused(
        self, clinics: ClinicCache, counting: Counting, pool: Pool, redis: Redis
    ) -> None:
        route = await insert(pool, "ours")
        counting.gate.clear()
        asleep = asyncio.create_task(clinics.get("ours"))
        await eventually(lambda: counting.queries)
        await asyncio.sleep(0.05)
        await remove(redis, pool, route)
        counting.gate.set()
        assert await asleep == route, "it was so when it asked"
        assert await redis.exists("whatsapp:instance:ours") == 0
        assert await clinics.get("ours") is None

    @pytest.mark.fault("f7")
    async def test_nor_when_the_name_has_had_another_integration_meanwhile(
        self, clinics: ClinicCache, pool: Pool, redis: Redis
    ) -> None:
        first = await insert(pool, "ours")
        await remove(redis, pool, first)
        second = await insert(pool, "ours")
        assert await clinics.get("ours") == second
        await remove(redis, pool, second)
        assert not await clinics.set(first)
        assert not await clinics.set(second)
        third = await insert(pool, "ours")
        assert not await clinics.set(first)
        assert await clinics.get("ours") == third

    @pytest.mark.fault("f7")
    async def test_an_older_reading_does_not_overwrite_a_newer_one(
        self, clinics: ClinicCache, pool: Pool, redis: Redis
    ) -> None:
        old = await insert(pool, "ours")
        await pool.execute(
            "UPDATE healthcare.integrations SET whatsapp_number = '5511', "
            "updated_at = clock_timestamp()"
        )
        await clinics.get("ours")
        assert not await clinics.set(old)
        found = await clinics.get("ours")
        assert found is not None
        assert found.whatsapp_number == "5511"

    async def test_many_removals_of_one_name_leave_a_mark_that_does_not_grow(
        self, pool: Pool, redis: Redis, clinics: ClinicCache
    ) -> None:
        last = None
        for _ in range(30):
            last = await insert(pool, "ours")
            await remove(redis, pool, last)
        assert len(await redis.get("evosaga:removed:ours") or b"") <= 420
        assert last is not None
        assert not await clinics.set(last)


@contextlib.asynccontextmanager
async def following(redis: Redis, pool: Any, every: float = 60.0) -> AsyncIterator["Follower"]:
    follower = Follower()
    task = asyncio.create_task(follower.run(redis, pool, every))
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Follower:
    """A worker that keeps its set of instances by what it is told."""

    def __init__(self) -> None:
        self.known: dict[str, Route] = {}
        self.told: list[Change] = []

    async def run(self, redis: Redis, pool: Any, every: float) -> None:
        async with contextlib.aclosing(follow(redis, pool, every=every)) as changes:
            async for change in changes:
                self.told.append(change)
                name = change.route.instance_name
                if change.kind == "removed":
                    del self.known[name]
                else:
                    assert (name in self.known) == (change.kind == "changed")
                    self.known[name] = change.route

    def holds(self, *names: str) -> Callable[[], bool]:
        return lambda: set(self.known) == set(names)


async def subscribed(redis: Redis) -> None:
    async def there() -> bool:
        return all(count for _, count in await redis.pubsub_numsub(ADDED, REMOVED))

    await eventually(there)


async def tell(redis: Redis, channel: str, name: str) -> None:
    await redis.publish(channel, json.dumps({"instance_name": name, "organization_id": "?"}))


class TestFollowing:
    async def test_tells_everything_there_is_and_then_every_change(
        self, redis: Redis, pool: Pool
    ) -> None:
        await insert(pool, "first")
        async with following(redis, pool) as follower:
            await eventually(follower.holds("first"))
            await subscribed(redis)
            second = await insert(pool, "second")
            await tell(redis, ADDED, "second")
            await eventually(follower.holds("first", "second"))
            await remove(redis, pool, second)
            await tell(redis, REMOVED, "second")
            await eventually(follower.holds("first"))
            assert [change.kind for change in follower.told] == ["added", "added", "removed"]

    @pytest.mark.fault("f4")
    async def test_a_follower_that_missed_messages_catches_up_when_it_is_back(
        self, redis: Redis, pool: Pool
    ) -> None:
        first = await insert(pool, "first")
        async with following(redis, pool) as follower:
            await eventually(follower.holds("first"))
            await subscribed(redis)
            await insert(pool, "second")  # and nobody tells
            await remove(redis, pool, first)
            await redis.client_kill_filter(_type="pubsub")
            await eventually(follower.holds("second"))

    @pytest.mark.fault("f4")
    async def test_and_also_when_nothing_is_ever_told(self, redis: Redis, pool: Pool) -> None:
        async with following(redis, pool, every=0.1) as follower:
            await insert(pool, "first")
            await eventually(follower.holds("first"))
            await pool.execute(
                "UPDATE healthcare.integrations SET whatsapp_number = '5511', updated_at = now()"
            )
            await eventually(lambda: follower.known["first"].whatsapp_number == "5511")
            await pool.execute("DELETE FROM healthcare.integrations")
            await eventually(follower.holds())
            assert [c.kind for c in follower.told] == ["added", "changed", "removed"]

    @pytest.mark.fault("f5")
    async def test_repeated_reordered_and_strange_messages_change_nothing(
        self, redis: Redis, pool: Pool
    ) -> None:
        await insert(pool, "first")
        async with following(redis, pool) as follower:
            await eventually(follower.holds("first"))
            await subscribed(redis)
            for _ in range(3):
                for channel in (REMOVED, ADDED):
                    await tell(redis, channel, "first")
                    await tell(redis, channel, "never-was")
            for strange in ("", "garbage", "[]", '{"instance_name": 5}', b"\xff"):
                await redis.publish(ADDED, strange)
            await insert(pool, "second")
            await tell(redis, ADDED, "second")
            await eventually(follower.holds("first", "second"))
            assert [change.kind for change in follower.told] == ["added", "added"]

    async def test_another_integration_under_the_same_name_is_a_removal_and_an_addition(
        self, redis: Redis, pool: Pool
    ) -> None:
        first = await insert(pool, "ours")
        async with following(redis, pool) as follower:
            await eventually(follower.holds("ours"))
            await subscribed(redis)
            await remove(redis, pool, first)
            second = await insert(pool, "ours")
            await tell(redis, REMOVED, "ours")
            await eventually(lambda: follower.known.get("ours") == second)
            kinds = [(c.kind, at(c.route)) for c in follower.told]
            assert kinds == [("added", at(first)), ("removed", at(first)), ("added", at(second))]

    async def test_outages_of_redis_are_waited_out(
        self, own_redis: Redis, own_valkey: LocalServer, pool: Pool
    ) -> None:
        await insert(pool, "first")
        await asyncio.to_thread(own_valkey.stop)
        async with following(own_redis, pool) as follower:
            await eventually(follower.holds("first"), message="Postgres alone is enough to begin")
            await insert(pool, "second")
            await asyncio.to_thread(own_valkey.start_again)
            await eventually(follower.holds("first", "second"), 30)
            await asyncio.to_thread(own_valkey.stop)
            await insert(pool, "third")
            await asyncio.to_thread(own_valkey.start_again)
            await eventually(follower.holds("first", "second", "third"), 30)
