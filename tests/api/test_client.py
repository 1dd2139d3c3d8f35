"""The client for Python backends: typed answers, and errors that say whose they are to mend."""

import asyncio
import dataclasses
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.client import (
    AlreadyExists,
    BadRequest,
    Busy,
    Client,
    Conflict,
    EvosagaError,
    NotAllowed,
    NotFound,
    NotYet,
    Parked,
    RolledBack,
    ServerFault,
    Unavailable,
)
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, list_sagas
from tests.api.conftest import OPERATOR, OUR_KEY, OURS, THEIRS, served
from tests.support.driving import impatient
from tests.support.waiting import eventually

CLINIC = uuid.uuid4()


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    async with parts_with_worker(settings, impatient(1)) as parts:
        yield parts


@pytest.fixture
async def evosaga(address_: str) -> AsyncIterator[Client]:
    async with Client(address_, OPERATOR) as client:
        yield client


async def test_from_create_to_delete_in_typed_answers(evosaga: Client) -> None:
    made = await evosaga.create(OURS, CLINIC, "Clínica Sol", number="5511987654321")
    assert made.saga_id == made.integration_id
    assert (made.instance_name, made.status) == (f"wa-{made.saga_id}", "pending")
    assert made.qr_code is not None
    assert str(made.qr_code.base64).startswith("data:image/png")
    assert (await evosaga.qr_code(made.instance_name)).base64

    saga = await evosaga.status(made.instance_name)
    assert saga == await evosaga.status(made.saga_id) == await evosaga.wait(made.saga_id)
    assert (saga.status, saga.over, saga.organization_id) == ("completed", True, OURS)
    assert saga.created_at.tzinfo is not None

    events = await evosaga.events(made.saga_id)
    assert [event.sequence for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("saga.started", "saga.completed")

    gone = await evosaga.delete(made.instance_name)
    assert dataclasses.asdict(gone) == {
        "success": True,
        "evolution_deleted": True,
        "database_deleted": True,
        "cache_invalidated": True,
        "workers_notified": True,
        "errors": (),
    }
    page = await evosaga.list(organization_id=OURS, limit=1)
    assert [saga.saga for saga in page.sagas] == ["delete-integration"]
    older = await evosaga.list(organization_id=OURS, limit=1, cursor=str(page.cursor))
    assert [saga.saga_id for saga in older.sagas] == [made.saga_id]
    assert older.cursor is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.status = "connected"  # type: ignore[misc]


async def test_every_trouble_has_its_class(
    evosaga: Client, address_: str, evolution: SimulatedEvolution
) -> None:
    first = await evosaga.create(OURS, CLINIC, "Clínica Sol", channel="EVOLUTION")
    with pytest.raises(AlreadyExists) as exists:
        await evosaga.create(OURS, CLINIC, "Clínica Luna")
    assert exists.value.existing_instance == first.instance_name

    calls: list[tuple[type[EvosagaError], Callable[[], Awaitable[object]]]] = [
        (BadRequest, lambda: evosaga.create(OURS, CLINIC, "")),
        (BadRequest, lambda: evosaga.list(status="lost")),
        (NotFound, lambda: evosaga.status(uuid.uuid4())),
        (NotFound, lambda: evosaga.delete("wa-nobody")),
        (NotFound, lambda: evosaga.status("../../etc/passwd")),
        (Conflict, lambda: evosaga.replay(first.saga_id)),
        (Conflict, lambda: evosaga.cancel(first.saga_id)),
    ]
    for kind, call in calls:
        with pytest.raises(kind) as trouble:
            await call()
        assert trouble.value.code
        assert trouble.value.message
    async with Client(address_, "wrong") as stranger:
        with pytest.raises(NotAllowed):
            await stranger.list()
    async with Client(address_, OUR_KEY) as ours:
        with pytest.raises(NotAllowed):
            await ours.create(THEIRS, CLINIC, "Clínica Sol")
        assert len((await ours.list()).sagas) == 2

    evolution.arm("reject", operation="create", message="token is required")
    with pytest.raises(RolledBack) as rolled_back:
        await evosaga.create(THEIRS, CLINIC, "Clínica Sol")
    saga = await evosaga.status(rolled_back.value.saga_id)
    assert saga.status == "compensated"
    anew = await evosaga.replay(saga.saga_id, "try again")
    assert (await evosaga.wait(anew.saga_id)).status == "completed"
    assert anew.saga_id != saga.saga_id

    evolution.arm("5xx_before", operation="delete", times=None)
    with pytest.raises(Parked) as parked:
        await evosaga.delete(first.instance_name)
    evolution.disarm()
    await evosaga.replay(parked.value.saga_id)
    assert (await evosaga.wait(parked.value.saga_id)).status == "completed"


async def test_what_takes_longer_is_waited_for_or_left(
    evosaga: Client, evolution: SimulatedEvolution, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "evosaga.orchestrator.client.client._ROUND", 0.1
    )  # several requests, one saga
    evolution.arm("slow", operation="create", times=2, seconds=0.7)
    made = await evosaga.create(OURS, CLINIC, "Clínica Sol", channel="EVOLUTION")
    assert (await evosaga.status(made.saga_id)).status == "completed"
    with pytest.raises(NotYet) as not_yet:
        await evosaga.create(THEIRS, CLINIC, "Clínica Sol", channel="EVOLUTION", wait=0)
    with pytest.raises(NotYet):
        await evosaga.wait(not_yet.value.saga_id, 0)
    cancelled = await evosaga.cancel(not_yet.value.saga_id, "changed our mind")
    followed = [event.type async for event in evosaga.follow(cancelled.saga_id)]
    assert followed[-1] == "saga.compensated"
    assert len((await list_sagas(pool, Filter()))[0]) == 2


async def test_the_same_id_is_the_same_create(evosaga: Client, pool: Pool) -> None:
    answers = await asyncio.gather(
        *(
            evosaga.create(OURS, CLINIC, "Clínica Sol", id="order-17", channel="EVOLUTION")
            for _ in range(3)
        )
    )
    assert answers[0] == answers[1] == answers[2]
    with pytest.raises(Conflict):
        await evosaga.create(THEIRS, CLINIC, "Clínica Sol", id="order-17")
    assert len((await list_sagas(pool, Filter()))[0]) == 1


async def test_an_answer_that_got_lost_is_asked_for_again_and_nothing_is_done_twice(
    parts: AppContext, evolution: SimulatedEvolution
) -> None:
    """A proxy that takes the request, and breaks the connection before the answer is through."""
    async with served(parts) as where:
        port, broken = int(where.rpartition(":")[2]), 2

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal broken
            inner_reader, inner = await asyncio.open_connection("127.0.0.1", port)
            inner.write(await reader.read(65536))
            answer = await inner_reader.read(65536)
            if broken:
                broken -= 1
            else:
                writer.write(answer)
            writer.close()
            inner.close()

        proxy = await asyncio.start_server(between, "127.0.0.1", 0)
        address = proxy.sockets[0].getsockname()[1]
        async with Client(f"http://127.0.0.1:{address}", OPERATOR) as client:
            made = await client.create(OURS, CLINIC, "Clínica Sol", channel="EVOLUTION")
        proxy.close()
    assert broken == 0
    assert list(evolution.rows()) == [made.instance_name]


async def test_a_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evosaga.orchestrator.client.client._PAUSE", 0.001)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Client(f"http://127.0.0.1:{taken.getsockname()[1]}", "secret-key") as client:
            with pytest.raises(Unavailable) as trouble:
                await client.list()
    assert "secret-key" not in str(trouble.value)


async def test_a_limit_is_waited_out_and_then_said(
    settings: Settings, parts: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evosaga.orchestrator.client.client._LONGEST_PAUSE", 0.01)
    slow = Settings.model_validate(settings.model_dump() | {"api_rate": 0.01})
    fields = {name: getattr(parts, name) for name in parts.__slots__}
    async with (
        served(AppContext(**fields | {"settings": slow})) as where,
        Client(where, OPERATOR) as client,
    ):
        await client.list()
        with pytest.raises(Busy):
            await client.list()


async def test_a_fault_of_the_server_is_not_the_callers(
    evosaga: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("evosaga.orchestrator.api.sagas.list_sagas", stumble)
    with pytest.raises(ServerFault, match="please name that when you report it"):
        await evosaga.list()
    await eventually(lambda: True)
