"""Create and delete, end to end: from an XADD to the three stores and the streams."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.sagas.whatsapp.steps.instance_removal
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.sagas.whatsapp.ownership import KeyRing, fingerprint, stored
from tests.conftest import SECRET
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    delete,
    entries,
    impatient,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.waiting import eventually
from tests.support.workers import Worker

EVENTS_OF_A_CREATE = [
    "saga.started",
    *(f"step.{what} {step}" for step in ("evolution", "postgres", "cache", "notify", "pair")
      for what in ("started", "succeeded")),
    "saga.completed",
]  # fmt: skip


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings, impatient()) as worker:
        yield worker


async def created(pool: Pool, redis: Redis, **fields: Any) -> SagaView:
    saga = await outcome(pool, await publish(redis, create(**fields)))
    assert saga.status == "completed", saga
    return saga


async def ended(pool: Pool, redis: Redis, command: dict[str, Any]) -> SagaView:
    return await outcome(pool, await publish(redis, command))


async def steer(redis: Redis, type_: str, saga: SagaView, **fields: Any) -> str:
    data = {"saga_id": str(saga.saga_id)} | fields
    return await publish(redis, {"id": str(uuid.uuid4()), "type": type_, "data": data})


async def assert_nothing_left(
    pool: Pool, redis: Redis, evolution: SimulatedEvolution, name: str
) -> None:
    assert name not in evolution.live()
    assert name not in evolution.rows()
    row = "SELECT count(*) FROM healthcare.integrations WHERE config ->> 'instance_name' = $1"
    assert await pool.fetchval(row, name) == 0
    assert await redis.exists(f"whatsapp:instance:{name}", f"evosaga:qr:{name}") == 0


def assert_no_stranger_was_touched(evolution: SimulatedEvolution) -> None:
    """S8: everything that a DELETE really removed was removed with the instance's own token."""
    for entry in evolution.journal:
        if entry.operation == "delete" or (entry.cause == "DELETE" and entry.applied):
            assert entry.key_kind == "instance", entry


@contextlib.asynccontextmanager
async def listening(
    redis: Redis, *channels: str
) -> AsyncIterator[list[tuple[str, dict[str, Any]]]]:
    heard: list[tuple[str, dict[str, Any]]] = []
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(*channels)

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    heard.append((message["channel"].decode(), json.loads(message["data"])))

        task = asyncio.create_task(listen())
        yield heard
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.fault("a5")
async def test_a_command_from_before_the_first_worker_ends_with_all_stores_agreeing(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    command = create(channel="WHATSAPP-BAILEYS", number="5511987654321")
    await publish(redis, command)
    async with running_worker(settings):
        saga = await outcome(pool, command["id"])
        name = str(saga.instance_name)
        assert (saga.status, name) == ("completed", f"wa-{command['id']}")
        assert await story(pool, saga) == EVENTS_OF_A_CREATE

        keys = KeyRing([SECRET])
        token = keys.instance_token(saga.saga_id, keys.current)
        assert evolution.live()[name].token_hash == fingerprint(token)
        assert evolution.rows()[name].integration == "WHATSAPP-BAILEYS"
        [row] = await pool.fetch("SELECT * FROM healthcare.integrations")
        told = {k: v for k, v in row.items() if k not in ("created_at", "updated_at", "config")}
        assert told == {
            "id": saga.saga_id,
            "organization_id": uuid.UUID(command["data"]["organization_id"]),
            "type": "whatsapp",
            "provider": "evolution",
            "status": "pending",
            "enabled": True,
            "webhook_token": stored(keys.webhook_token(saga.saga_id, keys.current)),
            "whatsapp_number": None,
        }
        assert json.loads(row["config"]) == {
            "instance_name": name,
            "clinic_id": command["data"]["clinic_id"],
            "name": "Clínica Sol",
            "channel": "WHATSAPP-BAILEYS",
        }
        key = await redis.get(f"whatsapp:instance:{name}")
        assert (
            key
            == json.dumps(
                {
                    "clinic_id": command["data"]["clinic_id"],
                    "organization_id": command["data"]["organization_id"],
                    "name": "Clínica Sol",
                    "whatsapp_number": None,
                },
                ensure_ascii=False,
            ).encode()
        )
        assert 0 < await redis.ttl(f"whatsapp:instance:{name}") <= 3600
        assert set(json.loads(await redis.get(f"evosaga:qr:{name}") or b"")) == {
            "base64", "code", "pairing_code"
        }  # fmt: skip
        assert 0 < await redis.ttl(f"evosaga:qr:{name}") <= 60

        async def stream_tells() -> bool:
            seen = [json.loads(f[b"data"]) for _, f in await entries(redis, streams.EVENTS)]
            types = [line.split()[0] for line in EVENTS_OF_A_CREATE]
            return [event["type"] for event in seen] == types

        await eventually(stream_tells)
        await eventually(lambda: nothing_pending(redis))
    assert await contradictions(pool) == []


async def test_a_delete_empties_all_three_and_the_workers_are_told_of_both(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with listening(redis, "wa:instances:added", "wa:instances:removed") as heard:
        command = create()
        first = await ended(pool, redis, command)
        name = str(first.instance_name)
        second = await ended(pool, redis, delete(name))
        assert second.status == "completed"
        await eventually(lambda: len(heard) == 2)
    assert (await story(pool, second))[1:3] == ["step.started mark", "step.succeeded mark"]
    await assert_nothing_left(pool, redis, evolution, name)
    about = {
        "instance_name": name,
        "organization_id": command["data"]["organization_id"],
        "clinic_id": command["data"]["clinic_id"],
    }
    for (channel, message), expected, saga in zip(
        heard, ("wa:instances:added", "wa:instances:removed"), (first, second), strict=True
    ):
        assert channel == expected
        assert message.pop("at").endswith("+00:00")
        assert message == about | {"saga_id": str(saga.saga_id)}
    # The organization is free again, and the next instance is another one.
    again = await created(pool, redis, organization_id=command["data"]["organization_id"])
    assert again.instance_name != name
    assert_no_stranger_was_touched(evolution)


@pytest.mark.fault("a13")
async def test_a_delete_of_another_organizations_instance_looks_like_one_of_none(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    saga = await created(pool, redis)
    name, other = str(saga.instance_name), str(uuid.uuid4())
    before = len(evolution.journal.entries)
    strange = await ended(pool, redis, delete(name, organization_id=other))
    nobody = await ended(pool, redis, delete("nobody", organization_id=other))
    for one in (strange, nobody):
        assert (one.status, one.code, one.existing_instance) == ("rejected", "not_found", None)
        assert await story(pool, one) == ["saga.rejected"]
    assert str(strange.message).replace(name, "nobody") == nobody.message
    assert len(evolution.journal.entries) == before
    assert name in evolution.live()
    right = delete(name, organization_id=str(saga.organization_id))
    assert (await ended(pool, redis, right)).status == "completed"


async def test_a_row_of_the_old_system_is_deleted_with_its_instance(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Made by the RPC, its instance by hand under a token that we never knew."""
    evolution.foreign("legacy-clinic")
    await pool.execute(
        "SELECT healthcare.save_evolution_integration($1, 'legacy-clinic')", uuid.uuid4()
    )
    await redis.set("whatsapp:instance:legacy-clinic", "{}")
    evolution.foreign("legacy-neighbour")
    saga = await ended(pool, redis, delete("legacy-clinic"))
    assert saga.status == "completed", saga
    await assert_nothing_left(pool, redis, evolution, "legacy-clinic")
    assert "legacy-neighbour" in evolution.live()
    assert_no_stranger_was_touched(evolution)


@pytest.mark.fault("d8")
async def test_what_was_removed_by_hand_is_cleared_up_by_a_delete(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    name = str((await created(pool, redis)).instance_name)
    evolution.drop(name)
    saga = await ended(pool, redis, delete(name))
    assert saga.status == "completed"
    await assert_nothing_left(pool, redis, evolution, name)
    assert evolution.journal.requests("delete") == []


@pytest.mark.fault("d5")
@pytest.mark.parametrize(("keep", "name"), [("row", None), ("memory", "sol-berlin")])
async def test_a_half_that_no_delete_can_reach_is_parked_for_a_person(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    keep: str,
    name: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Evolution is shipped it answers 404 for a ghost row, and 401 for what has no row.

    What is in memory alone under a chosen name may be anybody's.
    """
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_VANISH_SECONDS", 0.2)
    chosen = {"instance_name": name} if name else {}
    async with running_worker(settings, impatient(1)):
        name = str((await created(pool, redis, **chosen)).instance_name)
        evolution.half_delete(name, keep=keep)
        saga = await ended(pool, redis, delete(name))
    assert (saga.status, saga.step, saga.code) == ("failed", "evolution", "instance_remains")
    assert await pool.fetchval("SELECT status FROM healthcare.integrations") == "deleting"


@pytest.mark.fault("d5")
async def test_a_ghost_row_of_ours_is_cleared_by_itself(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_VANISH_SECONDS", "_REMOVAL_SECONDS"):
        monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, name, 0.1)
    async with running_worker(settings, impatient(5)):
        name = str((await created(pool, redis)).instance_name)
        evolution.half_delete(name, keep="row")
        saga = await ended(pool, redis, delete(name))
    assert saga.status == "completed"
    assert not evolution.rows()
    assert not evolution.live()


@pytest.mark.fault("d5")
async def test_the_cure_that_a_parked_half_names_is_one(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_VANISH_SECONDS", "_REMOVAL_SECONDS"):
        monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, name, 0.1)
    async with running_worker(settings, impatient(1)):
        chosen = {"instance_name": "sol-berlin"}  # in memory alone, a derived one is removed
        both = [await created(pool, redis), await created(pool, redis, **chosen)]
        made = [str(saga.instance_name) for saga in both]
        for name, keep in zip(made, ("row", "memory"), strict=True):
            evolution.half_delete(name, keep=keep)
        parked = [await ended(pool, redis, delete(name)) for name in made]
        for saga in parked:
            assert saga.status == "failed"
            assert "restart Evolution, then replay" in str(saga.message)
        await evolution.restart()
        for saga in parked:
            data = {"saga_id": str(saga.saga_id)}
            await publish(redis, {"id": f"r{saga.saga_id}", "type": "saga.replay", "data": data})

        async def all_done() -> bool:
            query = "SELECT count(*) FROM evosaga.sagas WHERE status = 'completed'"
            return int(await pool.fetchval(query)) == 4

        await eventually(all_done, message="both deletes to complete")
    assert not evolution.rows()
    assert not evolution.live()


@pytest.mark.fault("d7")
async def test_a_stranger_who_took_the_name_meanwhile_is_left_alone(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    name = str((await created(pool, redis)).instance_name)
    stranger = evolution.foreign(name)
    saga = await ended(pool, redis, delete(name))
    assert saga.status == "completed"
    assert evolution.live()[name].instance_id == stranger
    assert await pool.fetchval("SELECT count(*) FROM healthcare.integrations") == 0
    assert await redis.exists(f"whatsapp:instance:{name}") == 0
    assert evolution.journal.requests("delete") == []


@pytest.mark.fault("c9")
async def test_a_name_that_a_stranger_has_on_evolution_is_refused_without_a_delete(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    stranger = evolution.foreign("wanted")
    saga = await ended(pool, redis, create(instance_name="wanted"))
    assert (saga.status, saga.code) == ("compensated", "name_taken")
    assert (await story(pool, saga))[-2:] == ["compensation.began evolution", "saga.compensated"]
    assert evolution.rows()["wanted"].instance_id == stranger
    assert evolution.journal.requests("delete") == []
    assert await pool.fetchval("SELECT count(*) FROM healthcare.integrations") == 0


@pytest.mark.fault("c3", "c8")
async def test_an_instance_whose_reply_was_lost_is_adopted(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("cut", operation="create")
    evolution.arm("5xx_before", operation="connectionState")
    saga = await created(pool, redis)
    assert (await story(pool, saga))[2:5] == [
        "step.failed evolution", "step.started evolution", "step.succeeded evolution"
    ]  # fmt: skip
    assert len(evolution.journal.requests("create")) == 1


@pytest.mark.fault("c6")
async def test_a_create_that_lands_after_its_successor_leaves_one_instance(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("late", operation="create", seconds=0.5)
    saga = await ended(pool, redis, create())
    name = str(saga.instance_name)

    def landed() -> bool:
        return any(e.kind == "applied" and e.operation == "create" for e in evolution.journal)

    await eventually(landed)
    row = await pool.fetchval("SELECT count(*) FROM healthcare.integrations")
    assert (saga.status == "completed") == (row == 1) == (name in evolution.live())


@pytest.mark.fault("d6")
async def test_a_create_that_follows_a_delete_at_once_is_not_caught_by_its_removal(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """The same name again, while the removal of the one before is still under way."""
    first = await created(pool, redis, instance_name="the-name")
    evolution.arm("delete_async", operation="delete", seconds=0.4)
    await publish(redis, delete("the-name"))
    organization = str(first.organization_id)
    early = await ended(pool, redis, create(organization_id=organization, instance_name="the-name"))
    assert (early.status, early.existing_instance) == ("rejected", "the-name")
    await eventually(lambda: "the-name" not in evolution.rows())

    async def free() -> bool:
        again = create(organization_id=organization, instance_name="the-name")
        return (await ended(pool, redis, again)).status == "completed"

    await eventually(free)
    assert "the-name" in evolution.live()
    assert "the-name" in evolution.rows()


async def test_a_webhook_url_must_name_a_listed_host(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    subtests: pytest.Subtests,
) -> None:
    listed = settings.model_copy(update={"webhook_hosts": frozenset({"hooks.example"})})
    async with running_worker(listed):
        for url in ("https://hooks.example.evil/in", "https://evil/?hooks.example"):
            with subtests.test(url=url):
                saga = await ended(pool, redis, create(webhook_url=url))
                assert (saga.status, saga.code) == ("rejected", "webhook_host")
                assert list(evolution.journal) == []
        for url in ("https://hooks.example/in", "https://HOOKS.example:8443/in"):
            with subtests.test(url=url):
                assert (await ended(pool, redis, create(webhook_url=url))).status == "completed"


async def test_without_a_list_no_webhook_url_is_taken(
    worker: Worker, pool: Pool, redis: Redis
) -> None:
    saga = await ended(pool, redis, create(webhook_url="https://hooks.example/in"))
    assert (saga.status, saga.code) == ("rejected", "webhook_host")


# -- replay and cancel


@pytest.mark.fault("l9")
async def test_a_parked_delete_keeps_its_key_and_is_replayed(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_REMOVAL_SECONDS", 0.2)
    async with running_worker(settings, impatient(1)):
        saga = await created(pool, redis)
        evolution.arm("5xx_before", operation="delete", times=None)
        parked = await ended(pool, redis, delete(str(saga.instance_name)))
        assert parked.status == "failed"
        assert (parked.step, parked.code) == ("evolution", "instance_remains")
        blocked = await ended(pool, redis, create(organization_id=str(saga.organization_id)))
        assert (blocked.status, blocked.existing_instance) == ("rejected", saga.instance_name)
        evolution.disarm()
        command = {
            "id": str(uuid.uuid4()),
            "type": "saga.replay",
            "data": {"saga_id": str(parked.saga_id), "reason": "Evolution is well again"},
        }
        for _ in range(2):
            await publish(redis, command)
        await eventually(lambda: nothing_pending(redis))
        replayed = await outcome(pool, str(parked.saga_id))
        assert replayed.status == "completed"
        assert (await story(pool, replayed)).count("saga.resumed") == 1
        await assert_nothing_left(pool, redis, evolution, str(saga.instance_name))
        await steer(redis, "saga.replay", replayed)
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        assert (await dead_letters(redis))[0]["code"] == "not_replayable"


async def test_a_compensated_create_is_replayed_as_a_saga_of_its_own(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("reject", operation="create", message="token is required")
    first = await ended(pool, redis, create())
    assert first.status == "compensated"
    again = await outcome(pool, await steer(redis, "saga.replay", first))
    assert again.status == "completed"
    assert again.saga_id != first.saga_id
    events = await pool.fetch(
        "SELECT DISTINCT correlation_id FROM evosaga.saga_events WHERE saga_id = $1", again.saga_id
    )
    assert [row["correlation_id"] for row in events] == [str(first.saga_id)]


async def test_a_waiting_create_is_cancelled_and_undone_and_a_finished_one_is_not(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", times=None, status=503)
    command = create()
    await publish(redis, command)
    await eventually(lambda: len(evolution.journal.requests("create")) >= 1)
    evolution.disarm()
    cancel = {
        "id": "cancel-1", "type": "saga.cancel", "data": {"saga_id": command["id"], "reason": "no"}
    }  # fmt: skip
    await publish(redis, cancel)
    saga = await outcome(pool, command["id"])
    assert (saga.status, saga.code) == ("compensated", "cancelled")
    assert "saga.cancel_requested" in await story(pool, saga)
    await assert_nothing_left(pool, redis, evolution, str(saga.instance_name))
    await publish(redis, cancel)
    finished = await created(pool, redis)
    await steer(redis, "saga.cancel", finished)
    await publish(redis, {"id": "x", "type": "saga.cancel", "data": {"saga_id": str(uuid.uuid4())}})
    await eventually(lambda: nothing_pending(redis))
    assert {d["code"] for d in await dead_letters(redis)} == {"not_cancellable", "unknown_saga"}
