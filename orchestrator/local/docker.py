"""The embedded servers in containers of their official images: `EVOSAGA_LOCAL=docker`.

They listen on a port of the loopback interface, since a container's Unix sockets are not reachable
from outside on every platform. Any user of the machine could connect to that port, hence the
password. Docker keeps the data in a volume named after the folder; the volume of a private server
is removed with its container, so that data does not survive `kill` or `stop`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from hashlib import blake2b

from evosaga.orchestrator.local.binaries import LocalServerUnavailable, cure
from evosaga.orchestrator.local.paths import Home
from evosaga.orchestrator.local.server_process import ServerSpec

SECRETS = "docker.env"


def plan(
    home: Home,
    *,
    image: str,
    url: str,
    volume: str,
    ports: tuple[int, int],
    inside: Sequence[str],
    greeting: bytes,
    welcome: str,
    quit_signal: int,
) -> ServerSpec:
    """The supervisor's spec for a container; docker's client passes signals on to it."""
    get_image(image)
    name = f"evosaga-{home.path.name}-{blake2b(os.fsencode(home.path), digest_size=6).hexdigest()}"
    storage = volume if home.private else f"{name}:{volume}"  # unnamed, it is removed with --rm
    container = ["docker", "run", "--rm", "--name", name, "--env-file", str(home.path / SECRETS)]
    container += ["-v", storage, "-p", f"127.0.0.1:{ports[0]}:{ports[1]}", image, *inside]
    # A container remains when the machine or the supervisor was killed.
    script = 'docker rm -f "$0" >/dev/null 2>&1; exec "$@"'
    return ServerSpec(
        facts={"url": url, "version": image.partition(":")[2], "source": "docker"},
        folders=[],
        data=str(home.data),
        prepare=[],
        command=["sh", "-c", script, name, *container],
        address=("127.0.0.1", ports[0]),
        greeting=greeting.hex(),
        welcome=welcome,
        quit_signal=quit_signal,
        abandon_signal=quit_signal,
        control=str(home.control),
        in_use=str(home.in_use),
        log=str(home.log),
        remove=home.remove,
        kill=("docker", "kill", name),
    )


def get_image(image: str) -> None:
    """Pull an image unless it is present. Raises LocalServerUnavailable."""
    docker = shutil.which("docker")
    if docker is None:
        raise LocalServerUnavailable(f"EVOSAGA_LOCAL=docker, but there is no `docker`. {cure()}")
    reason = ""
    for command in (["image", "inspect", image], ["pull", "-q", image]):
        done = subprocess.run(  # noqa: S603
            [docker, *command], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        reason = done.stderr.strip()
    raise LocalServerUnavailable(f"Docker can't provide {image}: {reason}. {cure()}")


def password(home: Home, variable: str, *more: str) -> str:
    """The server's password: the one it was created with, else a new one."""
    file = home.path / SECRETS
    try:
        return file.read_text().splitlines()[0].partition("=")[2]
    except FileNotFoundError:
        word = secrets.token_hex(16)
        file.touch(mode=0o600)
        file.write_text("\n".join((f"{variable}={word}", *more, "")))
        return word


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
