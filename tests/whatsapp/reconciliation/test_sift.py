"""A comparison that leaves out what agrees finds what one that keeps everything finds."""

import json
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.reconciliation import sift
from evosaga.orchestrator.whatsapp.reconciliation.agreed import Agreed
from evosaga.orchestrator.whatsapp.reconciliation.inventory import instances_on
from evosaga.orchestrator.whatsapp.reconciliation.observe import observe
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import (
    OFTEN,
    Found,
    Reconciler,
    find,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Keep, Row
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.models import InstanceList
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key
from tests.conftest import API_KEY, SECRET
from tests.whatsapp.reconciliation.conftest import Rows
from tests.whatsapp.reconciliation.population import Made, hook, people, settle

NUMBER = 40
BERLIN_KEY = "the-key-of-berlin"


@dataclass(frozen=True)
class World:
    """Two servers: what agrees is on both."""

    keeper: Reconciler
    here: SimulatedEvolution
    berlin: SimulatedEvolution
    made: list[Made]


@pytest.fixture
async def world(pool: Pool, redis: Redis, evolution: SimulatedEvolution) -> AsyncIterator[World]:
    keys, made = KeyRing([SECRET]), people(NUMBER)
    async with (
        SimulatedEvolution(api_key=BERLIN_KEY, pace=0.0) as berlin,
        EvolutionApi(evolution.url, API_KEY, timeout=5.0) as one,
        EvolutionApi(berlin.url, BERLIN_KEY, timeout=5.0) as other,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        for server, some in ((evolution, made[::2]), (berlin, made[1::2])):
            await settle(some, pool, redis, server, keys)
            await hook(some, pool, server, keys)
        await pool.execute(
            'UPDATE healthcare.integrations SET config = config || \'{"server": "berlin"}\' '
            "WHERE id = ANY($1)",
            [one.id for one in made[1::2]],
        )
        servers = {"default": one, "berlin": other}
        services = Services(servers, redis, http, keys, quiet_seconds=0.3, pool=pool)
        gate = CommandHandler(pool, EventLog(pool), services, discover())
        patterns = ("*{organization_id}*", "*{clinic_id}*")
        yield World(Reconciler(pool, services, gate, patterns, quiet=0.0), evolution, berlin, made)


async def drift(world: World, pool: Pool, redis: Redis, rows: Rows, seed: int) -> None:
    """One of each kind, each of another integration, and what only looks like it."""
    some = random.Random(seed)
    one = some.sample(world.made, 14)
    at = {made.id: (world.berlin if n % 2 else world.here) for n, made in enumerate(world.made)}
    other = {made.id: (world.here if n % 2 else world.berlin) for n, made in enumerate(world.made)}
    at[one[0].id].drop(one[0].name)
    await set_row(pool, one[1], status="pending")
    await pool.execute("DELETE FROM healthcare.integrations WHERE id = $1", one[2].id)
    await pool.execute(
        "UPDATE evosaga.sagas SET status = 'compensated' WHERE saga_id = $1", one[2].id
    )
    await pool.execute("DELETE FROM healthcare.integrations WHERE id = $1", one[3].id)
    await set_row(pool, one[4], status="deleting")
    await set_row(pool, one[5], enabled=False)
    await set_row(pool, one[6], whatsapp_number="5500000000000")
    await redis.set(routing_key.key(one[7].name), "garbage", ex=600)
    await redis.set(routing_key.key("nobody"), json.dumps({"organization_id": "x"}), ex=600)
    at[one[8].id].lose(one[8].name, "settings")
    at[one[9].id].lose(one[9].name, "webhook")
    # A namesake on the other server, and what older code left beside one that is well.
    other[one[10].id].put(one[10].name, phone="5511900000001")
    other[one[11].id].put(f"clinic-{one[11].clinic_id}", phone="5511900000002")
    at[one[12].id].put(f"old-{one[12].organization_id}")
    await rows.insert(one[13].name)
    world.here.put("somebody-elses", phone="5511900000003")


async def set_row(pool: Pool, made: Made, **values: Any) -> None:
    for column, value in values.items():
        await pool.execute(
            f"UPDATE healthcare.integrations SET {column} = $1 WHERE id = $2", value, made.id
        )


def told(found: Found) -> dict[str, Any]:
    where = {one.where for one in found.drifts}
    return {
        "drifts": sorted((one for one in found.drifts), key=lambda d: (d.what, d.where)),
        "unseen": found.unseen,
        "strangers": found.strangers,
        "busy": found.busy,
        "paired": found.paired & where,
    }


@pytest.mark.parametrize("seed", [1, 2])
async def test_it_finds_the_same_as_one_that_keeps_everything(
    world: World, pool: Pool, redis: Redis, rows: Rows, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    await drift(world, pool, redis, rows, seed)
    whose = world.made[-1].organization_id
    asked: list[dict[str, Any]] = [
        {},
        {"kinds": OFTEN, "share": 3},
        {"keep": Keep(whose, "none")},
        {"share": 5},
    ]
    sifted = [told(await find(world.keeper, **one)) for one in asked]
    kinds = {one.what for one in sifted[0]["drifts"]}
    assert {"missing", "orphan", "wrong_status", "webhook_missing", "elsewhere"} <= kinds
    assert {"older_orphan", "row_gone", "named_twice", "key_unreadable"} <= kinds | {"superseded"}
    seen = await observe(pool, world.keeper.services)
    assert len(seen.snapshot.rows) == NUMBER - 1, "a few agree and are asked about all the same"
    seen = await observe(pool, world.keeper.services, keys=False)
    assert len(seen.snapshot.rows) < 20, "the others agree"
    monkeypatch.setattr(sift, "fits", lambda row, instance: False)
    whole = [told(await find(world.keeper, **one)) for one in asked]
    assert [len(one["drifts"]) for one in sifted] == [len(one["drifts"]) for one in whole]
    assert sifted[0] == whole[0]
    assert sifted[1:3] == whole[1:3]


async def test_where_all_agree_nothing_is_kept(world: World, pool: Pool) -> None:
    """However many there are, of the instances that look well no more than the sample is kept."""
    assert (await find(world.keeper)).drifts == []
    seen = await observe(pool, world.keeper.services, keys=False)
    assert not seen.snapshot.rows
    assert not seen.snapshot.instances
    assert sum(one.there for one in seen.sifted.agreed.values()) == NUMBER


async def test_of_a_server_that_is_away_no_row_is_read(world: World, pool: Pool) -> None:
    await world.berlin.stop()
    found = await find(world.keeper)
    assert found.drifts == []
    assert list(found.unseen) == ["berlin"]
    assert found.busy == NUMBER // 2


async def test_a_row_that_changes_its_server_during_a_look_is_one_row(
    world: World, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, lists = world.made[0], instances_on
    await set_row(pool, moved, status="pending")  # something is to be said of it on both servers
    monkeypatch.setattr(sift, "_AT_ONCE", 1)

    async def slow(server: EvolutionApi) -> InstanceList | str:
        if server is world.keeper.services.server("berlin"):
            await pool.execute(
                'UPDATE healthcare.integrations SET config = config || \'{"server": "berlin"}\', '
                "updated_at = now() WHERE id = $1",
                moved.id,
            )
        return await lists(server)

    monkeypatch.setattr(sift, "instances_on", slow)
    seen = (await observe(pool, world.keeper.services, keys=False)).snapshot
    assert [row.server for row in seen.rows if row.id == moved.id] == ["berlin"]


async def test_a_key_whose_name_no_row_can_have_ends_no_comparison(
    world: World, redis: Redis
) -> None:
    await redis.set(routing_key.key("a\0b"), "garbage", ex=600)
    assert (await find(world.keeper)).drifts == []


def test_what_was_packed_away_is_had_back_as_it_was_listed() -> None:
    keyring, agreed = KeyRing([SECRET]), Agreed()
    rows = sorted(
        (
            Row(uuid.uuid4(), uuid.uuid4(), f"wa-{n}", "connected", number="+55 11")
            for n in range(5)
        ),
        key=lambda row: row.id,
    )
    listed: list[Instance | None] = []
    for n, row in enumerate(rows):
        status = ("open", "connecting", "close")[n % 3]
        one = None
        if n != 3:
            one = Instance(
                name=row.instance_name,
                status=status,
                token_hash="",
                passive=n == 1,
                phone="5511" if n in (0, 2) else None,
                linked=n in (2, 4),
                like_ours=True,
                made_by=row.id,
                key_id=keyring.current,
            )
        agreed.put(row, one, expected=n != 3)
        listed.append(one)
    assert (len(agreed), agreed.expected, agreed.there) == (5, 4, 4)
    assert [len(page) for page in agreed.pages(2)] == [2, 1, 1]
    for row, before in zip(rows, listed, strict=True):
        after = agreed.take(row, keyring)
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            told = {name: getattr(after, name) for name in after.__slots__ if name != "token_hash"}
            assert told == {name: getattr(before, name) for name in told}
    assert (agreed.expected, agreed.there) == (0, 0)
    assert not [one for page in agreed.pages(2) for one in page]
    assert agreed.take(Row(uuid.uuid4(), uuid.uuid4(), "x", "connected"), keyring) is None
