"""What stands before Evolution answers in its place: a mistake of the set-up, no verdict.

Found in use: a 403 of a proxy made creates compensate for ever and hold their organizations.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.cli.doctor_evolution import check_evolution
from evosaga.orchestrator.config.evolution_servers import EvolutionServer
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from tests.conftest import API_KEY
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually

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


def named(mode: str, parameters: dict[str, Any]) -> str:
    return " ".join(map(str, (mode, *parameters.values())))


async def held(pool: Pool, id_: str) -> SagaView:
    """A create, once it is held for that reason."""
    found: list[SagaView] = []

    async def it_is() -> bool:
        saga = await find_saga(pool, id_)
        found[:] = [saga] if saga else []
        return saga is not None and saga.code == "evolution_misconfigured"

    await eventually(it_is, 20, message="the create to be held")
    return found[0]


async def healed(server: EvolutionApi) -> bool:
    """Whether the next fault will be met by a server that nothing was known against."""
    await server.instances()
    return server.state.state == "closed"


async def test_a_create_is_held_with_the_cure_and_goes_on_when_that_is_mended(
    settings: Settings, pool: Pool, redis: Redis, tmp_path: Path
) -> None:
    """Each of them stands before a server of its own, so one worker meets them all at once."""
    async with AsyncExitStack() as stack:
        started: list[SimulatedEvolution] = []
        for mode, parameters, _ in BEFORE_IT:
            started.append(
                await stack.enter_async_context(SimulatedEvolution(api_key=API_KEY, pace=0.05))
            )
            started[-1].arm(mode, times=None, **parameters)
        known = {
            f"number-{number}": EvolutionServer(server.url, SecretStr(API_KEY))
            for number, server in enumerate(started)
        }
        several = settings.model_copy(update={"evolution_servers": known})
        worker = await stack.enter_async_context(running_worker(several))
        asked = [await publish(redis, create(server=name)) for name in known]
        for (mode, parameters, cure), name, id_ in zip(BEFORE_IT, known, asked, strict=True):
            what, breaker = named(mode, parameters), worker.services.servers[name]
            await eventually(partial(is_open, breaker), message=f"{what} to be noticed")
            saga = await held(pool, id_)
            assert saga.status == "running", what
            assert cure in str(saga.message), what
            explain = explainer(worker.services.servers)
            assert cure in str(await why_of(pool, discover(), saga, explain)), what
        told = await commandline(tmp_path, settings)("why", asked[-1])
        cure = BEFORE_IT[-1][2]
        assert f"What you can do: {cure}" in told.out or cure in told.lines[-1]
        for server in started:
            server.disarm()
        for (mode, parameters, _), id_ in zip(BEFORE_IT, asked, strict=True):
            assert (await outcome(pool, id_, 60)).status == "completed", named(mode, parameters)
        for server in started:
            assert server.journal.requests("delete") == [], "nothing was undone"


def is_open(server: EvolutionApi) -> bool:
    return server.state.state == "open"


async def test_who_comes_while_the_breaker_is_open_is_held_before_anything_is_sent(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("proxy", times=None)
    async with running_worker(settings) as worker:
        await publish(redis, create())
        await eventually(lambda: worker.services.servers["default"].state.state == "open")
        await held(pool, await publish(redis, create()))
        assert len(evolution.journal.requests("create")) <= 2, "a probe now and then, no more"


async def test_at_its_deadline_a_create_that_was_refused_by_a_proxy_frees_its_organization(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    soon = settings.model_copy(update={"create_deadline": 0.8})
    async with running_worker(soon) as worker:
        server = worker.services.servers["default"]

        for status in (403, 404, 407):
            evolution.arm("proxy", times=None, status=status)
            saga = await outcome(pool, await publish(redis, create()), 30)
            assert (saga.status, saga.code) == ("compensated", "deadline_exceeded"), status
            assert not evolution.rows(), status
            evolution.disarm()
            await eventually(partial(healed, server), message="the breaker to close")
    assert not evolution.rows()


async def test_a_name_in_use_stays_what_it_is(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.foreign("taken-name")
    async with running_worker(settings) as worker:
        saga = await outcome(pool, await publish(redis, create(instance_name="taken-name")), 30)
        assert worker.services.servers["default"].state.state == "closed"
    assert (saga.status, saga.code) == ("compensated", "name_taken")
    assert "taken-name" in evolution.rows()


# --- doctor -----------------------------------------------------------------------------------


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def test_the_doctor_says_what_stands_before_evolution(
    evosaga: Evosaga, settings: Settings, evolution: SimulatedEvolution, subtests: pytest.Subtests
) -> None:
    for mode, parameters, cure in BEFORE_IT:
        with subtests.test(named(mode, parameters)):
            evolution.arm(mode, times=None, **parameters)
            findings = [finding async for finding in check_evolution(settings)]
            [bad] = [finding for finding in findings if finding.verdict == "bad"]
            assert bad.check.startswith("evolution")
            assert cure in bad.cure
            assert "accepted" not in str(findings)
            evolution.disarm()
    evolution.arm("licence", times=None)
    ran = await evosaga("doctor", "--json")
    [told] = [c for c in ran.json["checks"] if c["verdict"] == "bad"]
    assert told["check"].startswith("evolution")
    assert BEFORE_IT[-1][2] in told["cure"]
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


async def test_the_doctor_believes_no_key_to_be_accepted_by_just_any_json(
    settings: Settings, subtests: pytest.Subtests
) -> None:
    for body, verdict in (
        ('{"status":"ok"}', "bad"),
        ('[{"id":1,"title":"a todo"}]', "bad"),
        ("[]", "warn"),
        ("17", "bad"),
    ):
        with subtests.test(body):
            async with answering(body) as url:
                there = settings.model_copy(update={"evolution_url": url})
                findings = [finding async for finding in check_evolution(there)]
            assert verdict in {finding.verdict for finding in findings}
            assert "accepted" not in str(findings)
