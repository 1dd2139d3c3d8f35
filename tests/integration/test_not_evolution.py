"""What stands before Evolution answers in its place: a mistake of the set-up, no verdict.

Found in use: a 403 of a proxy made creates compensate for ever and hold their organizations.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from events.database import Pool
from orchestrator.app import running_worker
from orchestrator.config import Settings
from orchestrator.local.evolution import SimulatedEvolution
from orchestrator.queries import find_saga
from tests.commandline import Evosaga, commandline
from tests.driving import create, outcome, publish
from tests.waiting import eventually

BEFORE_IT: list[tuple[str, dict[str, Any], str]] = [
    # the fault, its parameters, a word of the cure
    ("proxy", {"status": 403, "body": "html"}, "let this machine past it"),
    ("proxy", {"status": 403, "body": "json"}, "let this machine past it"),
    ("proxy", {"status": 404, "body": "text"}, "check EVOSAGA_EVOLUTION_URL"),
    ("proxy", {"status": 405, "body": "empty"}, "check EVOSAGA_EVOLUTION_URL"),
    ("proxy", {"status": 407, "body": "html"}, "let this machine past it"),
    ("proxy", {"status": 451, "body": "html"}, "let this machine past it"),
    ("proxy", {"status": 200, "body": "html"}, "a login page stands before it"),
    ("proxy", {"status": 200, "body": "json"}, "a login page stands before it"),
    ("no_key", {}, "let no proxy strip the header apikey"),
    ("cors", {}, "unset CORS_ORIGIN on the Evolution server"),
    ("licence", {}, "register the Evolution server at https://evolution.example/manager/register"),
]
IDS = [f"{mode}{p.get('status', '')}{p.get('body', '')}" for mode, p, _ in BEFORE_IT]


@pytest.mark.parametrize(("mode", "parameters", "cure"), BEFORE_IT, ids=IDS)
async def test_a_create_is_held_with_the_cure_and_goes_on_when_that_is_mended(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    tmp_path: Path,
    mode: str,
    parameters: dict[str, Any],
    cure: str,
) -> None:
    evolution.arm(mode, times=None, **parameters)
    async with running_worker(settings) as worker:
        first = await publish(redis, create())
        await eventually(lambda: worker.world.servers["default"].state.state == "open")

        async def held() -> bool:
            saga = await find_saga(pool, first)
            return saga is not None and saga.code == "evolution_misconfigured"

        await eventually(held, 20, message="the create to be held")
        saga = await find_saga(pool, first)
        assert saga is not None
        assert saga.status == "running"
        assert saga.message is not None
        assert cure in saga.message
        told = await commandline(tmp_path, settings)("why", first)
        assert f"What you can do: {cure}" in told.out or cure in told.lines[-1]
        evolution.disarm()
        assert (await outcome(pool, first, 60)).status == "completed"
    assert evolution.journal.requests("delete") == [], "nothing was undone"


async def test_who_comes_while_the_breaker_is_open_is_held_before_anything_is_sent(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("proxy", times=None)
    async with running_worker(settings) as worker:
        await publish(redis, create())
        await eventually(lambda: worker.world.servers["default"].state.state == "open")
        second = await publish(redis, create())

        async def held() -> bool:
            saga = await find_saga(pool, second)
            return saga is not None and saga.code == "evolution_misconfigured"

        await eventually(held, 20, message="the second to be held")
        assert len(evolution.journal.requests("create")) <= 2, "a probe now and then, no more"


@pytest.mark.parametrize("status", [403, 404, 407])
async def test_at_its_deadline_a_create_that_was_refused_by_a_proxy_frees_its_organization(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, status: int
) -> None:
    evolution.arm("proxy", times=None, status=status)
    soon = settings.model_copy(update={"create_deadline": 0.8})
    async with running_worker(soon):
        saga = await outcome(pool, await publish(redis, create()), 30)
    assert (saga.status, saga.code) == ("compensated", "deadline_exceeded")
    assert not evolution.rows()


async def test_a_name_in_use_stays_what_it_is(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.foreign("taken-name")
    async with running_worker(settings) as worker:
        saga = await outcome(pool, await publish(redis, create(instance_name="taken-name")), 30)
        assert worker.world.servers["default"].state.state == "closed"
    assert (saga.status, saga.code) == ("compensated", "name_taken")
    assert "taken-name" in evolution.rows()


# --- doctor -----------------------------------------------------------------------------------


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


@pytest.mark.parametrize(("mode", "parameters", "cure"), BEFORE_IT, ids=IDS)
async def test_the_doctor_says_what_stands_before_evolution(
    evosaga: Evosaga,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
    cure: str,
) -> None:
    evolution.arm(mode, times=None, **parameters)
    ran = await evosaga("doctor", "--json")
    [bad] = [c for c in ran.json["checks"] if c["verdict"] == "bad"]
    assert bad["check"].startswith("evolution")
    assert cure in bad["cure"]
    assert "accepted" not in ran.out
    assert ran.code == 1


@asynccontextmanager
async def answering(body: str) -> AsyncIterator[str]:
    """Something that answers 200 and this JSON to whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ('{"status":"ok"}', "bad"),
        ('[{"id":1,"title":"a todo"}]', "bad"),
        ("[]", "warn"),
        ("17", "bad"),
    ],
)
async def test_the_doctor_believes_no_key_to_be_accepted_by_just_any_json(
    evosaga: Evosaga, body: str, verdict: str
) -> None:
    async with answering(body) as url:
        ran = await evosaga.having(evolution_url=url)("doctor", "--json")
    told = [c for c in ran.json["checks"] if c["check"].startswith("evolution")]
    assert verdict in {c["verdict"] for c in told}
    assert "accepted" not in ran.out
