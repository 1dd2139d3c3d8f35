"""The verbs that answer HTTP, as processes: serve, api and dev."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.cli.dev import kept_secret
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import API_KEYS, CREATE, OPERATOR, asked, client_with
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import outcome
from tests.support.waiting import eventually


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings).having(api_keys=API_KEYS)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def serving(
    evosaga: Evosaga, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process that answers, and where; whatever is left of it at the end is killed."""
    port = free_port()
    process = await evosaga.start(*arguments, f"--port={port}")
    where = f"http://127.0.0.1:{port}"
    try:
        async with client_with(where, None) as client:

            async def up() -> bool:
                assert process.returncode is None, await process.communicate()
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/healthz")).status_code == 200
                return False

            await eventually(up, 40, message=f"{arguments} to answer")
        yield process, where
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Its exit code and all that it said."""
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, err.decode()


async def test_serve_answers_and_works_and_ends_gracefully(
    evosaga: Evosaga, settings: Settings, evolution: SimulatedEvolution, pool: Pool
) -> None:
    async with (
        serving(evosaga, "serve") as (process, where),
        client_with(where, OPERATOR) as client,
    ):
        ready = await client.get("/readyz")
        assert (ready.status_code, "worker" in ready.json()["checks"]) == (200, True)
        assert (await client.post(CREATE, json=asked())).status_code == 201
        evolution.arm("slow", operation="delete", seconds=1.5)
        name = next(iter(evolution.rows()))
        deleting = asyncio.create_task(client.delete(f"/integrations/evolution/{name}"))

        async def begun() -> bool:
            return bool((await client.get("/sagas?status=running")).json()["sagas"])

        await eventually(begun)
        process.send_signal(signal.SIGTERM)
        answer = await deleting  # whoever waits gets an answer, be it where to look
        assert answer.status_code in (200, 202)
        code, err = await ended(process)
        assert code == 0, err
        assert "Traceback" not in err
        assert OPERATOR not in err
        assert evolution.rows() == {}, "the step that was out was not finished"
    async with running_worker(settings):
        saga = answer.headers.get("location", "").rpartition("/")[2] or name
        assert (await outcome(pool, saga)).status == "completed"


async def test_the_api_alone_accepts_what_a_worker_elsewhere_carries_out(
    evosaga: Evosaga, settings: Settings, pool: Pool
) -> None:
    async with serving(evosaga, "api") as (process, where), client_with(where, OPERATOR) as client:
        left = await client.post(f"{CREATE}?wait=0", json=asked())
        assert left.status_code == 202
        assert (await client.get("/readyz")).json()["checks"]["workers"]["ok"] is False
        async with running_worker(settings):  # in our process, which is none of the API's
            assert (await outcome(pool, left.json()["saga_id"])).status == "completed"
        process.send_signal(signal.SIGINT)
        assert (await ended(process))[0] == 0


@pytest.mark.long
async def test_the_api_starts_while_redis_is_away(evosaga: Evosaga) -> None:
    away = evosaga.having(redis_url="redis://:hunter2@127.0.0.1:1/0")
    async with serving(away, "api") as (process, where), client_with(where, OPERATOR) as client:
        assert (await client.post(f"{CREATE}?wait=0", json=asked())).status_code == 202
        assert (await client.get("/readyz")).status_code == 503
        process.send_signal(signal.SIGTERM)
        code, err = await ended(process)
        assert code == 0
        assert "hunter2" not in err


async def test_without_keys_nothing_is_served_and_the_cure_is_named(evosaga: Evosaga) -> None:
    none = evosaga.having(api_keys=None)
    for verb in ("serve", "api"):
        ran = await none(verb)
        assert ran.code == 2
        assert ran.err.startswith("evosaga: set EVOSAGA_API_KEYS to name:key")
        assert len(ran.err.splitlines()) == 1
    wrong = await evosaga.having(api_keys="hunter2")("api")
    assert wrong.code == 2
    assert wrong.err.startswith("evosaga: EVOSAGA_API_KEYS: entry 1 must read")
    assert "hunter2" not in wrong.err


async def test_a_port_that_is_taken_is_said_in_a_sentence(evosaga: Evosaga) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = await evosaga("api", f"--port={port}")
    assert ran.code == 2
    assert f"can't listen on 127.0.0.1, port {port}" in ran.err
    assert "--port" in ran.err
    nowhere = await evosaga("api", "--host=192.0.2.1")
    assert nowhere.code == 2
    assert "can't listen on 192.0.2.1" in nowhere.err


@pytest.mark.long
async def test_dev_prints_an_address_and_a_key_that_it_keeps_and_prints_again(
    evosaga: Evosaga, tmp_path: Path
) -> None:
    kept = tmp_path / "state" / "api-key"
    first, second = await printed(evosaga, 2)
    assert first == second == kept_secret(kept)
    assert kept.stat().st_mode & 0o777 == 0o600


async def printed(evosaga: Evosaga, starts: int) -> list[str]:
    """The keys that ``dev`` prints, which opens to them and ends as it should."""
    needed = ("evolution_url", "evolution_api_key", "secret_key", "api_keys")
    bare = evosaga.having(**dict.fromkeys(needed))
    seen: list[str] = []
    for _ in range(starts):
        process = await bare.start("dev", "--json", "--port=0")
        try:
            assert process.stdout is not None
            told = json.loads(await asyncio.wait_for(process.stdout.readline(), 40))
            seen.append(told["api_key"])
            async with client_with(told["url"], told["api_key"]) as client:

                async def up(client: httpx.AsyncClient = client) -> bool:
                    with contextlib.suppress(httpx.TransportError):
                        return (await client.get("/readyz")).status_code == 200
                    return False

                await eventually(up, 40)
                assert (await client.get("/sagas")).status_code == 200
                assert (await client.get("/metrics")).status_code == 200
            process.send_signal(signal.SIGINT)
            code, err = await ended(process)
            assert code == 0, err
            assert told["api_key"] not in err
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
    return seen


async def test_the_doctor_counts_the_keys_and_names_those_that_are_too_short(
    evosaga: Evosaga,
) -> None:
    async def said(**variables: str | None) -> tuple[str, str, str]:
        ran = await evosaga.having(**variables)("doctor", "--json")
        (found,) = [check for check in ran.json["checks"] if check["check"] == "api keys"]
        return found["verdict"], found["said"], found["cure"]

    good, short, none = await asyncio.gather(
        said(),
        said(api_keys="a:hunter2hunter2hunter,b:a-key-that-is-long-enough"),
        said(api_keys=None),
    )
    assert good == ("ok", "3, of which 2 see one organization only", "")
    assert short[0] == "warn"
    assert short[2].startswith("shorter than 24 characters: a;")
    assert "hunter2" not in str(short)
    assert none[0] == "warn"
    assert "EVOSAGA_API_KEYS" in none[2]
