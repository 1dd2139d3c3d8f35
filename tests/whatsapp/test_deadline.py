"""Time that runs out: a create's own deadline, and commands that come too late."""

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.commands import BadCommand, read_command
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.accept import accept, parse_request
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.services import Services
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    delete,
    impatient,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.laws import chronicle
from tests.support.waiting import eventually

CATALOGUE = discover()


def within(settings: Settings, seconds: float) -> Settings:
    return settings.model_copy(update={"create_deadline": seconds})


@pytest.fixture
async def checked(pool: Pool) -> AsyncIterator[None]:
    """At the end every history obeys the laws, and the rows agree with them."""
    yield
    assert await contradictions(pool) == []
    for row in await pool.fetch("SELECT saga_id, saga, version FROM evosaga.sagas"):
        saga = CATALOGUE.find(row["saga"], row["version"])
        assert saga is not None
        chronicle(saga, [recorded.event for recorded in await history(pool, row["saga_id"])])


async def seen(pool: Pool, saga_id: str, **fields: Any) -> SagaView:
    """The saga, once it looks like that."""
    found: list[SagaView] = []

    async def looks_so() -> bool:
        saga = await find_saga(pool, saga_id)
        found[:] = [saga] if saga else []
        return saga is not None and all(getattr(saga, k) == v for k, v in fields.items())

    await eventually(looks_so, 20, message=f"{fields}, now {found}")
    return found[0]


async def nothing_left(pool: Pool, redis: Redis, evolution: SimulatedEvolution) -> None:
    assert not evolution.live()
    assert not evolution.rows()
    assert await pool.fetchval("SELECT count(*) FROM healthcare.integrations") == 0
    assert await redis.keys("whatsapp:instance:*") == []


# --- a create's own deadline ------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
async def test_a_create_that_is_not_done_in_time_is_undone_and_says_why(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", times=None, status=503)
    async with running_worker(within(settings, 0.8)):
        saga = await outcome(pool, await publish(redis, create()), 30)
    assert (saga.status, saga.code) == ("compensated", "deadline_exceeded")
    assert saga.message == "it was not done within 0.8 s, which is its deadline"
    told = [recorded.event for recorded in await history(pool, saga.saga_id)]
    [asked] = [event for event in told if event.type == "saga.cancel_requested"]
    assert asked.by == "deadline"
    [turned] = [event for event in told if event.type == "compensation.began"]
    assert turned.because == "deadline"
    await nothing_left(pool, redis, evolution)


@pytest.mark.usefixtures("checked")
async def test_a_create_that_sleeps_longer_than_its_deadline_is_woken_for_it(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Evolution asked for an hour of quiet; nobody drives the saga meanwhile."""
    evolution.arm("429", operation="create", times=None, retry_after=3600)
    async with running_worker(within(settings, 6.5)):
        id_ = await publish(redis, create())
        saga = await seen(pool, id_, code="evolution_busy")
        assert saga.next_at is not None
        assert saga.next_at - saga.created_at <= timedelta(seconds=6.5)
        assert (await outcome(pool, id_, 30)).code == "deadline_exceeded"
    await nothing_left(pool, redis, evolution)


@pytest.mark.usefixtures("checked")
async def test_a_create_that_naps_in_memory_is_woken_for_its_deadline_too(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("429", operation="create", times=None, retry_after=4.8)
    async with running_worker(within(settings, 0.5)):
        saga = await outcome(pool, await publish(redis, create()), 30)
    assert saga.code == "deadline_exceeded"
    told = {r.event.type: r.recorded_at for r in await history(pool, saga.saga_id)}
    slept = told["compensation.began"] - told["step.failed"]
    assert slept < timedelta(seconds=4), "by the log, it did not sleep as long as it was asked to"


@pytest.mark.usefixtures("checked")
async def test_a_deadline_waits_for_the_attempt_that_is_out_and_undoes_what_it_did(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow_after", operation="create", seconds=0.6)
    async with running_worker(within(settings, 0.2)):
        saga = await outcome(pool, await publish(redis, create()), 30)
    assert saga.code == "deadline_exceeded"
    assert (await story(pool, saga))[1:6] == [
        "step.started evolution",
        "step.succeeded evolution",
        "saga.cancel_requested",
        "compensation.began",
        "compensation.started evolution",
    ]
    await nothing_left(pool, redis, evolution)


@pytest.mark.usefixtures("checked")
async def test_past_the_point_of_no_return_a_create_has_all_the_time_in_the_world(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="connect", seconds=3.3)
    async with running_worker(within(settings, 3.0)):
        command = create(channel="WHATSAPP-BAILEYS")
        saga = await outcome(pool, await publish(redis, command), 30)
    assert saga.status == "completed"
    assert saga.updated_at - saga.created_at > timedelta(seconds=3)


@pytest.mark.usefixtures("checked")
async def test_a_create_that_no_worker_took_up_in_time_touches_nothing(
    settings: Settings, pool: Pool, redis: Redis, services: Services, evolution: SimulatedEvolution
) -> None:
    command = create()
    request = parse_request(CATALOGUE, read_command(json.dumps(command).encode()))
    hasty = Services(services.servers, redis, services.http, services.keys, create_deadline=0.01)
    await accept(pool, hasty, None, [request])
    await seen(pool, command["id"], status="running")
    async with running_worker(settings):
        saga = await outcome(pool, command["id"])
    assert (saga.status, saga.code) == ("compensated", "deadline_exceeded")
    assert list(evolution.journal) == []


@pytest.mark.usefixtures("checked")
async def test_the_deadline_is_what_it_was_when_the_create_began(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("429", operation="create", times=None, retry_after=0.2)
    async with running_worker(within(settings, 600)):
        id_ = await publish(redis, create())
        await seen(pool, id_, code="evolution_busy")
    async with running_worker(within(settings, 0.01)):
        since = len(evolution.journal.requests("create"))
        await eventually(lambda: len(evolution.journal.requests("create")) > since + 1)
        evolution.disarm()
        assert (await outcome(pool, id_)).status == "completed"


@pytest.mark.parametrize(("seconds", "recorded"), [(900.0, 900.0), (0.0, None), (1.5, 1.5)])
async def test_the_deadline_is_a_setting_and_is_recorded(
    settings: Settings, pool: Pool, redis: Redis, seconds: float, recorded: float | None
) -> None:
    async with running_worker(within(settings, seconds)):
        made = await outcome(pool, await publish(redis, create()))
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
    starts = [(await history(pool, saga.saga_id))[0].event for saga in (made, gone)]
    assert [getattr(event, "deadline_seconds", None) for event in starts] == [recorded, None]


def test_a_deadline_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(_env_file=None).create_deadline == 900.0
    monkeypatch.setenv("EVOSAGA_CREATE_DEADLINE", "-1")
    with pytest.raises(SettingsError, match="EVOSAGA_CREATE_DEADLINE"):
        load_settings(_env_file=None)


# --- commands that come too late --------------------------------------------------------------


def late(command: dict[str, Any], seconds: float = -1.0) -> dict[str, Any]:
    """The same command, to be obeyed before so many seconds from now."""
    return command | {"expirytime": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


@pytest.mark.fault("a14")
async def test_a_command_that_comes_too_late_is_rejected_and_touches_nothing(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    made = create(instance_name="in-time")
    commands = [late(made, 3600), late(create(instance_name="too-late"))]
    for command in commands:
        await publish(redis, command)
    async with running_worker(settings):
        kept = await outcome(pool, made["id"])
        stale = await outcome(pool, commands[1]["id"])
        gone = await outcome(pool, await publish(redis, late(delete("in-time"))))
    assert kept.status == "completed"
    assert [(s.status, s.code) for s in (stale, gone)] == [("rejected", "expired")] * 2
    assert "publish another one" in str(stale.message)
    assert str(stale.organization_id) == commands[1]["data"]["organization_id"]
    assert await story(pool, stale) == ["saga.rejected"]
    assert set(evolution.rows()) == {"in-time"}


@pytest.mark.fault("a14")
async def test_a_command_that_was_accepted_in_time_stays_accepted(
    pool: Pool, services: Services
) -> None:
    """It is delivered again after its time, and it is the database's clock that counts."""
    command = create()
    soon = late(command, 3600)
    past = command | {"expirytime": "2020-01-01T00:00:00Z"}
    kinds = []
    for one in (soon, past):
        request = parse_request(CATALOGUE, read_command(json.dumps(one).encode()))
        [answer] = await accept(pool, services, "w", [request])
        kinds.append(answer.kind)
    assert kinds == ["started", "duplicate"]


@pytest.mark.fault("a14")
async def test_a_late_cancel_is_a_dead_letter_and_the_saga_goes_on(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("429", operation="create", times=None, retry_after=0.2)
    async with running_worker(settings, impatient()):
        id_ = await publish(redis, create())
        await seen(pool, id_, code="evolution_busy")
        wish = {"id": "late", "type": "saga.cancel", "data": {"saga_id": id_}}
        await publish(redis, late(wish))
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        evolution.disarm()
        assert (await outcome(pool, id_)).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    assert (await dead_letters(redis))[0]["code"] == "expired"


@pytest.mark.parametrize(
    "moment",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
        "2026-01-31T12:00:00.123456789+05:30",
        "0001-01-02T00:00:00Z",
        "9999-12-31T23:59:59Z",
    ],
)
def test_an_expiry_is_a_time_as_rfc_3339_writes_it(moment: str) -> None:
    raw = json.dumps(create() | {"expirytime": moment}).encode()
    at = read_command(raw).expires_at
    assert at is not None
    assert at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "moment",
    [
        "",
        "tomorrow",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-01-31 12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T25:00:00Z",
        "20260131T120000Z",
        "0001-01-01T00:00:00+01:00",
        "٢٠٢٦-01-31T12:00:00Z",
        1_800_000_000,
        None,
        ["2026-01-31T12:00:00Z"],
    ],
)
def test_anything_else_is_no_command(moment: Any) -> None:
    with pytest.raises(BadCommand, match="expirytime must be a time") as refused:
        read_command(json.dumps(create() | {"expirytime": moment}).encode())
    assert refused.value.code == "wrong_shape"


def test_an_expiry_is_no_part_of_what_a_command_says() -> None:
    command = create() | {"id": str(uuid.uuid4())}
    plain, dated = (read_command(json.dumps(c).encode()) for c in (command, late(command)))
    assert plain.hash == dated.hash
    assert plain.saga_id == dated.saga_id == UUID(command["id"])
