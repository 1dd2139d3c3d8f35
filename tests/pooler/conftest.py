"""A PgBouncer in transaction mode before the suite's Postgres, where one is installed.

It hands each transaction to whatever connection is free, and there are only three of them. So
what one session is given, a setting, a lock or a prepared statement, another one finds.
"""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from evosaga.orchestrator.config.settings import Settings
from tests.conftest import Servers
from tests.recovery.conftest import spawn
from tests.support.waiting import eventually

__all__ = ["spawn"]  # a fixture of theirs

CONNECTIONS: Final = 3
_PROGRAM: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def written(folder: Path, postgres: str, port: int, mode: str, role: str) -> Path:
    """A configuration, in which everybody is let in as one role of Postgres."""
    parts = urlsplit(postgres)
    asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
    target = {
        "host": parts.hostname or asked.get("host"),
        "port": parts.port or asked.get("port", 5432),
        "user": role,
        "password": parts.password,
    }
    given = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": mode,
        "default_pool_size": CONNECTIONS,
        "max_client_conn": 500,
        "server_idle_timeout": 1,
    }
    if os.geteuid() == 0:  # as root it refuses to run, and others may not touch the socket
        host = Path(str(target["host"]))
        given["user"] = host.owner() if host.is_dir() else "nobody"
    path = folder / "pgbouncer.ini"
    where = " ".join(f"{name}={value}" for name, value in target.items() if value)
    lines = ["[databases]", f"* = {where}", "[pgbouncer]"]
    path.write_text("\n".join([*lines, *(f"{k} = {v}" for k, v in given.items()), ""]))
    return path


@pytest.fixture
def mode() -> str:
    """What it hands out; a test may want another."""
    return "transaction"


@pytest.fixture
def role() -> str:
    """As whom everybody is let in; a test may want another."""
    return "postgres"


@pytest.fixture
async def pooled_url(
    servers: Servers, database_url: str, tmp_path: Path, mode: str, role: str
) -> AsyncIterator[str]:
    """The way to the test's database through PgBouncer."""
    if _PROGRAM is None:
        pytest.skip("no pgbouncer on PATH (Debian: apt-get install pgbouncer)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = written(tmp_path, servers.postgres, port, mode, role)
    log = tmp_path / "pgbouncer.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220  # starting it takes no time
            [_PROGRAM, str(config)], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    url = f"postgresql://{role}@127.0.0.1:{port}{urlsplit(database_url).path}"
    try:

        async def up() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                connection = await asyncpg.connect(url, statement_cache_size=0, timeout=5)
            except OSError:
                return False
            await connection.close()
            return True

        await eventually(up, 20, message="PgBouncer to answer")
        yield url
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


@pytest.fixture
def settings(settings: Settings, pooled_url: str) -> Settings:
    """Everything of ours goes through it; the tests' own ``pool`` does not."""
    return settings.model_copy(update={"database_url": pooled_url})
