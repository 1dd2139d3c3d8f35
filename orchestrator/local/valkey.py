"""The embedded Valkey."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosaga.orchestrator.local import docker
from evosaga.orchestrator.local.binaries import Program, find_valkey, wanted
from evosaga.orchestrator.local.handle import LocalServer, run
from evosaga.orchestrator.local.paths import Home
from evosaga.orchestrator.local.server_process import ServerSpec

SOCKET = "valkey.sock"
IMAGE = "valkey/valkey:9-alpine"
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    # Refuse new entries rather than lose old ones of a stream by eviction.
    "maxmemory-policy": "noeviction",
}


@contextmanager
def local_valkey(folder: Path | None = None) -> Iterator[LocalServer]:
    """A Valkey (or Redis) reachable by a Unix socket of its own, with an append-only file.

    Folders, sharing and the end are as with `local_postgres`. Blocks for about 0.1 s. Raises
    LocalServerUnavailable.
    """
    if wanted() == "docker":
        with run("valkey", folder, None, len("control"), container) as server:
            yield server
        return
    program = find_valkey()
    with run("valkey", folder, None, len(f"run/{SOCKET}"), lambda h: plan(h, program)) as server:
        yield server


def plan(home: Home, program: Program) -> ServerSpec:
    """The supervisor's spec for a Valkey in `home`."""
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    places = ["--dir", str(home.data), "--unixsocket", str(home.run / SOCKET)]
    return ServerSpec(
        facts={
            "url": f"unix://{home.run / SOCKET}",
            "version": program.version,
            "source": program.source,
        },
        folders=[str(home.run)],
        data=str(home.data),
        prepare=[],
        command=[str(program.path), *places, *options],
        address=str(home.run / SOCKET),
        greeting=b"PING\r\n".hex(),
        welcome="+PONG",
        quit_signal=signal.SIGTERM,
        abandon_signal=signal.SIGKILL,
        control=str(home.control),
        in_use=str(home.in_use),
        log=str(home.log),
        remove=home.remove,
    )


def container(home: Home) -> ServerSpec:
    """The same in a container. Raises LocalServerUnavailable."""
    word = docker.password(home, "PASSWORD")
    port = docker.free_port()
    only_here = ("port", "unixsocketperm")
    settings = {k: v for k, v in SETTINGS.items() if k not in only_here}
    options = " ".join(f"--{name} '{value}'" for name, value in settings.items())
    # From a file, because a process's arguments are readable by every user.
    script = f'echo "requirepass $PASSWORD" > /tmp/c && exec valkey-server /tmp/c {options}'
    return docker.plan(
        home,
        image=IMAGE,
        url=f"redis://:{word}@127.0.0.1:{port}/0",
        volume="/data",
        ports=(port, 6379),
        inside=["sh", "-c", script],
        greeting=f"AUTH {word}\r\n".encode(),
        welcome="+OK",
        quit_signal=signal.SIGTERM,
    )
