"""The embedded Postgres."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosaga.orchestrator.local import docker
from evosaga.orchestrator.local.binaries import (
    LocalServerUnavailable,
    Program,
    find_postgres,
    wanted,
)
from evosaga.orchestrator.local.handle import LocalServer, run
from evosaga.orchestrator.local.paths import Account, Home, account_for_postgres
from evosaga.orchestrator.local.server_process import ServerSpec

USER = "postgres"
DATABASE = "evosaga"
PORT = 5432
IMAGE = "postgres:18-alpine"
SOCKET = f".s.PGSQL.{PORT}"
SETTINGS = {
    # Committed data must be on the disk.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    # As files in the data folder, so that a kill leaves nothing in the machine's shared memory.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_checkpoints": "off",
}


@contextmanager
def local_postgres(folder: Path | None = None) -> Iterator[LocalServer]:
    """A Postgres with the empty database `evosaga`, reachable by a Unix socket of its own.

    Without a `folder` it is private to the caller, and its data is removed at the end. Data in a
    given folder is kept, and all processes that give the same folder share the server: the last one
    stops it. It also stops, and cleans up, when its owners are killed.

    Blocks for about a second at first, 0.2 s with a kept folder. Raises LocalServerUnavailable.
    """
    try:
        account = account_for_postgres()
    except LookupError as reason:
        raise LocalServerUnavailable(f"{reason}. Set EVOSAGA_DATABASE_URL.") from reason
    if wanted() == "docker":
        with run("postgres", folder, None, len("control"), container) as server:
            yield server
        return
    program = find_postgres(account)
    longest = len(f"run/{SOCKET}")
    with run("postgres", folder, account, longest, lambda h: plan(h, program, account)) as server:
        yield server


def plan(home: Home, program: Program, account: Account | None) -> ServerSpec:
    """The supervisor's spec for a Postgres in `home`."""
    refuse_another_version(home, program)
    fresh = f"{home.data}.fresh"
    initdb = [str(program.path.with_name("initdb")), "-D", fresh, "-U", USER, "-E", "UTF8"]
    initdb += ["--no-locale", "--auth=trust"]
    single = [str(program.path), "--single", "-D", fresh, "-c", "log_checkpoints=off"]
    if home.private:  # its data need not survive a power cut
        initdb += ["--no-sync"]
        single += ["-F"]
    options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    directory = ["-c", f"unix_socket_directories={home.run}", "-p", str(PORT)]
    return ServerSpec(
        facts={
            # With the port: clients otherwise read PGPORT from their environment.
            "url": f"postgresql://{USER}@/{DATABASE}?host={home.run}&port={PORT}",
            "version": program.version,
            "source": program.source,
        },
        folders=[str(home.run)],
        data=str(home.data),
        prepare=[(initdb, ""), ([*single, "template1"], f"CREATE DATABASE {DATABASE}\n")],
        command=[str(program.path), "-D", str(home.data), *directory, *options],
        address=str(home.run / SOCKET),
        greeting=greeting().hex(),
        welcome="R",
        quit_signal=signal.SIGINT,
        abandon_signal=signal.SIGQUIT,
        control=str(home.control),
        in_use=str(home.in_use),
        log=str(home.log),
        remove=home.remove,
        account=None if account is None else (account.uid, account.gid),
    )


def container(home: Home) -> ServerSpec:
    """The same in a container. Raises LocalServerUnavailable."""
    word = docker.password(home, "POSTGRES_PASSWORD", f"POSTGRES_DB={DATABASE}")
    port = docker.free_port()
    only_here = ("listen_addresses", "unix_socket_permissions")
    settings = {k: v for k, v in SETTINGS.items() if k not in only_here}
    options = [w for name, value in settings.items() for w in ("-c", f"{name}={value}")]
    return docker.plan(
        home,
        image=IMAGE,
        url=f"postgresql://{USER}:{word}@127.0.0.1:{port}/{DATABASE}",
        volume="/var/lib/postgresql",
        ports=(port, PORT),
        inside=["postgres", *options],
        greeting=greeting(),
        welcome="R",
        quit_signal=signal.SIGINT,
    )


def greeting() -> bytes:
    """A login message (protocol 3.0) and a goodbye; a server that is ready answers `R`."""
    words = b"\0".join((b"user", USER.encode(), b"database", DATABASE.encode(), b"", b""))
    login = struct.pack("!II", 8 + len(words), 3 << 16) + words
    return login + b"X" + struct.pack("!I", 4)


def refuse_another_version(home: Home, program: Program) -> None:
    """Refuse data of another major version, which Postgres cannot read, before it starts."""
    try:
        theirs = (home.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    ours = program.version.partition(".")[0]
    if theirs != ours:
        raise LocalServerUnavailable(
            f"{home.data} was made by Postgres {theirs}, and here is Postgres {ours} "
            f"({program.path}), which can't read it. Move that folder away to begin with an empty "
            f"database, or set EVOSAGA_DATABASE_URL to a Postgres {theirs} that has this data."
        )
