"""The deletion test: what is not WhatsApp's runs any domain, in a process that has no WhatsApp.

The hotel of ``test_your_first_saga`` is run by worker processes in which every import of
``evosaga.sagas.whatsapp`` and ``evosaga.orchestrator.whatsapp`` raises, and whose environment names
a Postgres and a Redis and nothing else.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from tests.fundamentals.hotel_worker import BLOCKED
from tests.support.driving import outcome, publish, story
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
Spawn: TypeAlias = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn(settings: Settings, tmp_path: Path) -> Iterator[Spawn]:
    """Starts a worker of the hotel, with sync points armed."""
    started: list[subprocess.Popen[str]] = []
    environment = _bare(settings)

    def start(*armed: dict[str, Any]) -> "subprocess.Popen[str]":
        with (tmp_path / f"worker-{len(started)}.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.fundamentals.hotel_worker"],
                cwd=ROOT,
                env=environment | {"EVOSAGA_SYNC_POINTS": json.dumps(armed)},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()


def _bare(settings: Settings) -> dict[str, str]:
    """An environment that names a Postgres and a Redis and nothing else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EVOSAGA_")}
    return kept | {
        "EVOSAGA_DATABASE_URL": str(settings.database_url),
        "EVOSAGA_REDIS_URL": str(settings.redis_url),
        "EVOSAGA_LEASE_SECONDS": str(settings.lease_seconds),
        "PYTHONPATH": str(ROOT),
    }


NEVER_AT_START = {
    *("aiohttp", "alembic", "cyclopts", "fastapi", "httpx", "jinja2", "opentelemetry", "rich"),
    *("prometheus_client", "sqlalchemy", "starlette", "uvicorn"),
    *("evosaga.orchestrator.api", "evosaga.orchestrator.whatsapp"),
}
APP = """
import contextlib, pathlib, sys
from evosaga import Done, Saga, domain, retryable
from pydantic import BaseModel


class Book(BaseModel):
    room: int


async def book(_):
    return Done()


@contextlib.asynccontextmanager
async def services():
    try:
        yield
    finally:
        pathlib.Path("imported").write_text(" ".join(sys.modules))


DOMAIN = domain(
    "inn",
    Saga(
        name="book", version=1, command="inn.book", input=Book,
        business_key=lambda wish: f"inn/{wish.room}", steps=(retryable("book", do=book),),
    ),
    services=services,
)
"""


async def test_it_starts_without_the_libraries_and_the_parts_that_others_need(
    settings: Settings, tmp_path: Path
) -> None:
    worker = _of_inn(settings, tmp_path)
    try:
        assert worker.stderr is not None
        told = await asyncio.to_thread(_until_up, worker.stderr)
        worker.send_signal(signal.SIGTERM)
        await eventually(lambda: worker.poll() is not None, 20)
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 0, told
    assert NEVER_AT_START.isdisjoint((tmp_path / "imported").read_text().split())


def _of_inn(settings: Settings, folder: Path) -> "subprocess.Popen[str]":
    """A worker of ``APP``, as an operator starts it."""
    (folder / "inn.py").write_text(APP)
    return subprocess.Popen(
        [sys.executable, "-m", "evosaga.orchestrator.cli", "worker"],
        cwd=folder,
        env=_bare(settings) | {"EVOSAGA_APP": "inn:DOMAIN"},
        stderr=subprocess.PIPE,
        text=True,
    )


def _until_up(lines: Iterable[str]) -> str:
    """What it said up to then, or to its end."""
    told = ""
    for line in lines:
        told += line
        if "worker is up" in line:
            break
    return told


def book(room: int, guest: str) -> dict[str, Any]:
    data = {"room": room, "guest": guest, "euros": 80}
    return {"id": str(uuid.uuid4()), "type": "room.book", "data": data}


def test_in_such_a_process_there_is_no_whatsapp() -> None:
    code = (
        "import importlib, sys; from tests.fundamentals.hotel_worker import Deleted\n"
        "sys.meta_path.insert(0, Deleted())\n"
        "for module in sys.argv[1:]:\n"
        "    try: importlib.import_module(module)\n"
        "    except ImportError as error: print(module, error)\n"
    )
    modules = [*BLOCKED, f"{BLOCKED[0]}.types", f"{BLOCKED[1]}.domain"]
    told = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines] == modules
    assert all("was deleted" in line for line in lines)


async def test_a_saga_whose_worker_is_killed_is_taken_over_and_charges_once(
    spawn: Spawn, pool: Pool, redis: Redis
) -> None:
    await redis.set("balance:ada", 100)
    victim = spawn({"at": "eff.post:charge", "do": "kill"})
    id_ = await publish(redis, book(102, "ada"))
    await eventually(lambda: victim.poll() == -signal.SIGKILL, 30)
    assert await redis.hlen("charges") == 1
    spawn()
    saga = await outcome(pool, id_, 30)
    assert saga.status == "completed"
    assert await redis.hlen("charges") == 1
    assert (await story(pool, saga)).count("step.started charge") == 2


async def test_one_worker_completes_refuses_compensates_and_replays_and_leaves_in_order(
    spawn: Spawn, pool: Pool, redis: Redis
) -> None:
    await redis.set("balance:ada", 100)
    worker = spawn()
    saga = await outcome(pool, await publish(redis, book(101, "ada")), 30)
    assert saga.status == "completed"
    assert await redis.hget("keys", "ada") == b"door-101"

    saga = await outcome(pool, await publish(redis, book(113, "ada")), 30)
    assert (saga.status, saga.code) == ("rejected", "no_such_room")

    saga = await outcome(pool, await publish(redis, book(103, "bob")), 30)
    assert (saga.status, saga.code) == ("compensated", "card_declined")
    assert not await redis.exists("room:103")

    # A replay of what was undone starts anew.
    await redis.set("balance:bob", 100)
    wish = {"id": str(uuid.uuid4()), "type": "saga.replay", "data": {"saga_id": str(saga.saga_id)}}
    again = await outcome(pool, await publish(redis, wish), 30)
    assert (again.saga, again.status) == ("book-a-room", "completed")
    assert await redis.get("room:103") == str(again.saga_id).encode()

    worker.send_signal(signal.SIGTERM)
    await eventually(lambda: worker.poll() == 0, 20)
