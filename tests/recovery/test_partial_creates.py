"""Evolution dies, or loses its database, between the rows of a create: what is left of it is made
whole or removed, and no person and no restart is needed for that.

Its rows are the instance's, its webhook's and its settings', in this order.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.sagas.whatsapp.evolution.circuit_breaker
import evosaga.sagas.whatsapp.steps.instance_removal
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from tests.conftest import API_KEY
from tests.support.driving import create, delete, outcome, publish, story
from tests.support.sampled import sampled
from tests.support.waiting import eventually

PUBLIC = "http://192.0.2.1:9"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_REMOVAL_SECONDS", 0.3)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"public_url": PUBLIC, "lease_seconds": 10.0})


CACHES = {True: "SAVE_INSTANCES", False: "no cache"}


@pytest.fixture(params=sampled(CACHES, keep=[True], id=CACHES.__getitem__))
async def evolution(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedEvolution]:
    async with SimulatedEvolution(
        api_key=API_KEY, pace=0.05, save_instances=request.param, webhook_attempts=1
    ) as server:
        yield server


def webhook(evolution: SimulatedEvolution, name: str) -> dict[str, Any]:
    row = evolution._world.rows[name].webhook
    assert row is not None, "it has no webhook"
    return row


def is_whole(evolution: SimulatedEvolution, name: str) -> None:
    """In memory and in the database, with its webhook and its settings."""
    assert name in evolution.live()
    assert evolution.rows()[name].settings
    found = webhook(evolution, name)
    assert found["url"] == f"{PUBLIC}/webhooks/evolution/{name}"
    assert found["enabled"] is True
    assert {"MESSAGES_UPSERT", "CONNECTION_UPDATE"} <= set(found["events"])
    assert "REMOVE_INSTANCE" not in found["events"]
    assert len(found["headers"]["X-Webhook-Token"]) == 64


@pytest.mark.parametrize("evolution", CACHES, ids=CACHES.get, indirect=True)
async def test_after_a_kill_between_the_rows_a_create_completes_with_all_of_them(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        for times, after in enumerate(("instance", "webhook", "settings"), 1):
            evolution.arm("kill", after=after)
            saga = await outcome(pool, await publish(redis, create()), 30)
            assert saga.status == "completed", (after, await story(pool, saga))
            assert saga.instance_name
            is_whole(evolution, saga.instance_name)
            assert evolution.fired["kill"] == times


@pytest.mark.parametrize("seconds", sampled([0, 0.8], keep=[0.8]))
async def test_after_its_database_was_away_between_the_rows_a_create_completes_with_all_of_them(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, seconds: float
) -> None:
    async with running_worker(settings):
        for times, after in enumerate(("nothing", "instance", "webhook"), 1):
            evolution.arm("db_lost", after=after, seconds=seconds)
            saga = await outcome(pool, await publish(redis, create()), 30)
            assert saga.status == "completed", (after, await story(pool, saga))
            assert saga.instance_name
            is_whole(evolution, saga.instance_name)
            assert evolution.fired["db_lost"] == times


@pytest.mark.parametrize(
    "channel", sampled(["EVOLUTION", "WHATSAPP-BAILEYS"], keep=["WHATSAPP-BAILEYS"])
)
async def test_a_create_keeps_to_the_webhook_of_its_command_when_it_sets_it_again(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, channel: str
) -> None:
    allowed = settings.model_copy(update={"webhook_hosts": frozenset({"elsewhere.example"})})
    evolution.arm("kill", after="instance")
    url = "https://elsewhere.example/hook"
    async with running_worker(allowed):
        command = create(webhook_url=url, channel=channel)
        saga = await outcome(pool, await publish(redis, command), 30)
    assert saga.status == "completed", await story(pool, saga)
    assert saga.instance_name
    assert webhook(evolution, saga.instance_name)["url"] == url
    assert not webhook(evolution, saga.instance_name)["headers"], "no token of ours goes there"


async def test_a_first_create_that_goes_well_asks_for_nothing_more(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Its 201 comes after the last row, so a look at the webhook would be a round trip too many."""
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    asked = [e.operation for e in evolution.journal.requests()]
    assert asked == ["create", "connectionState"]


async def in_memory_alone(
    pool: Pool, redis: Redis, evolution: SimulatedEvolution, **data: Any
) -> Any:
    """An integration whose instance has lost its row, and lives on in Evolution's memory."""
    saga = await outcome(pool, await publish(redis, create(**data)))
    assert saga.status == "completed"
    assert saga.instance_name
    evolution.half_delete(saga.instance_name, keep="memory")
    return saga


async def test_a_delete_removes_what_is_in_memory_alone(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await in_memory_alone(pool, redis, evolution)
        ended = await outcome(pool, await publish(redis, delete(saga.instance_name)), 30)
    assert ended.status == "completed", await story(pool, ended)
    assert saga.instance_name not in evolution.live()


async def test_a_chosen_name_that_is_in_memory_alone_is_nobodys_to_remove(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await in_memory_alone(pool, redis, evolution, instance_name="clinica-sol")
        id_ = await publish(redis, delete(saga.instance_name))
        await eventually(lambda: bool(evolution.journal.requests("delete")), 30)
        stuck = await find_saga(pool, id_)
    assert stuck is not None
    assert not stuck.over or stuck.status == "failed"
    assert "clinica-sol" in evolution.live()
    assert all(e.key_kind != "global" for e in evolution.journal.requests("delete"))


async def test_an_undo_removes_what_an_outage_has_left_in_memory_alone(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("db_lost", after="nothing", seconds=0, times=None)
    command = create()
    async with running_worker(settings):
        await publish(redis, command)
        await eventually(lambda: bool(evolution.live()), 10)
        await publish(
            redis,
            {"id": "stop-it", "type": "saga.cancel", "data": {"saga_id": command["id"]}},
        )
        saga = await outcome(pool, command["id"], 30)
    assert saga.status == "compensated", await story(pool, saga)
    assert not evolution.live()
    assert not evolution.rows()


async def test_creates_that_meet_an_outage_of_evolutions_database_all_complete(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("db_lost", after="nothing", seconds=1.0, name="wa-*")
    async with running_worker(settings):
        ids = [await publish(redis, create()) for _ in range(12)]
        ended = [await outcome(pool, id_, 60) for id_ in ids]
    assert [saga.status for saga in ended] == ["completed"] * 12
    for saga in ended:
        assert saga.instance_name
        is_whole(evolution, saga.instance_name)
    assert len(evolution.live()) == len(evolution.rows()) == 12
