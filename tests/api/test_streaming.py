"""A saga's events as server-sent events: all of them, once, live, and then the end."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.api import sse
from evosaga.orchestrator.api.concurrency import MOST, STREAMS
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import CREATE, OPERATOR, asked, client_with, problem, served
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Message:
    """One message, as a browser's EventSource would hand it over."""

    event: str
    id: str | None
    data: Any


async def messages(answer: httpx.Response) -> AsyncIterator[Message]:
    """Read a stream as the specification says: fields in lines, an empty line ends a message."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Message(
                fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])
            )
            fields = {}


async def read(client: httpx.AsyncClient, path: str, last: str | None = None) -> list[Message]:
    headers = {"Last-Event-ID": last} if last is not None else {}
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [message async for message in messages(answer)]


async def test_the_history_comes_first_then_what_happens_and_then_the_end(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", seconds=0.5)
    saga = (await operator.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
    told = await read(operator, f"/sagas/{saga}/stream")
    history = (await operator.get(f"/sagas/{saga}/events")).json()["events"]
    assert [message.data for message in told[:-1]] == history
    assert [message.id for message in told[:-1]] == [str(i) for i in range(len(history))]
    assert [message.event for message in told[:-1]] == [event["type"] for event in history]
    assert told[-1] == Message("over", None, {"status": "completed"})


async def test_who_comes_back_misses_nothing_and_gets_nothing_twice(
    operator: httpx.AsyncClient,
) -> None:
    saga = (await operator.post(CREATE, json=asked())).json()["saga_id"]
    path = f"/sagas/{saga}/stream"
    everything = await read(operator, path)
    for last in ("3", f"{saga}:3"):
        assert await read(operator, path, last) == everything[4:]
    for odd in ("", "x", "-7", "99999999999999999999", f"{saga}:"):
        assert await read(operator, path, odd.encode().decode("latin-1")) == everything
    end = await operator.get(path, headers={"Last-Event-ID": str(everything[-2].id)})
    assert end.status_code == 204, "a browser would come back for ever"


async def test_a_hundred_streams_hold_no_connection_to_postgres(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, parts: AppContext
) -> None:
    evolution.arm("slow", operation="create", seconds=3.0)
    saga = (await operator.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
    limits = httpx.Limits(max_connections=None)
    headers, base = operator.headers, operator.base_url
    async with httpx.AsyncClient(
        base_url=base, headers=headers, limits=limits, timeout=60, trust_env=False
    ) as many:
        streams = [asyncio.create_task(read(many, f"/sagas/{saga}/stream")) for _ in range(60)]

        async def all_open() -> bool:
            answer = await operator.get("/sagas?limit=1")
            return answer.status_code == 200 and parts.pool.get_size() <= 8

        await eventually(all_open)
        told = await asyncio.gather(*streams)
    assert all(one == told[0] for one in told)
    assert told[0][-1].event == "over"


async def test_a_silent_stream_is_kept_open_by_comments(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.05)
    evolution.arm("slow", operation="create", seconds=0.6)
    saga = (await operator.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
    async with operator.stream("GET", f"/sagas/{saga}/stream") as answer:
        lines = [line async for line in answer.aiter_lines()]
    assert lines.count(": keep-alive") >= 2


async def test_more_streams_than_anybody_needs_are_refused(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, STREAMS, replace(MOST[STREAMS], of_a_key=1))
    evolution.arm("slow", operation="create", seconds=1.0)
    saga = (await operator.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
    async with operator.stream("GET", f"/sagas/{saga}/stream") as first:
        lines = first.aiter_lines()
        assert await anext(lines)
        second = await operator.get(f"/sagas/{saga}/stream")
        assert (second.status_code, problem(second)["code"]) == (429, "too_many_streams")
        async for _ in lines:
            pass
    assert len(await read(operator, f"/sagas/{saga}/stream")) > 3


async def test_a_stream_that_is_left_early_leaves_nothing_behind(
    parts: AppContext, evolution: SimulatedEvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.05)
    monkeypatch.setitem(MOST, STREAMS, replace(MOST[STREAMS], of_a_key=1))
    evolution.arm("slow", operation="create", seconds=3.0)
    async with served(parts) as where, client_with(where, OPERATOR) as client:
        saga = (await client.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
        for _ in range(3):

            async def opened() -> bool:
                async with client.stream("GET", f"/sagas/{saga}/stream") as answer:
                    return answer.status_code == 200

            await eventually(opened)


async def test_when_the_server_stops_streams_end_and_whoever_waits_is_told_where_to_look(
    parts: AppContext, pool: Pool, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", times=None, seconds=5.0)
    async with served(parts) as where:
        client = client_with(where, OPERATOR)
        saga = (await client.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
        streaming_ = asyncio.create_task(read(client, f"/sagas/{saga}/stream"))
        body = asked(organization_id=str(uuid.uuid4()))
        waiting = asyncio.create_task(client.post(CREATE, json=body))

        async def both() -> bool:
            return len((await client.get("/sagas?status=running")).json()["sagas"]) == 2

        await eventually(both)
    told = await streaming_
    assert told
    assert told[-1].event != "over"
    answer = await waiting
    assert answer.status_code == 202
    assert answer.headers["location"].startswith("/sagas/")
    await client.aclose()
