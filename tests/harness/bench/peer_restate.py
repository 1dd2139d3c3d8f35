"""The same four steps on Restate, for ``make bench ARGS="--peer restate"``.

Restate's server keeps its log, with fsync, and its state in a RocksDB of its own; it is a child
of this process, so that what it costs is counted with it. This process alone serves the handlers,
as one worker of ours is one process, and its server has the other core of two to itself. It is
run as it is shipped; ``--peer restate-tuned`` changes what made it faster on two cores, ``TUNING``.

Tried on two cores, by processor time a create: hypercorn instead of granian costs a fifth more,
four partitions instead of one a sixth, requests and responses instead of streams nearly twice as
much; workflows instead of a service and 128 in flight make no difference. To keep no journals saves
a fourteenth, but ours keeps its events too; uvloop saves an eighth, but no side here runs on it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import Any, Final

import aiohttp
import restate
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from restate.serde import JsonSerde

from tests.harness.bench import peer, peers

LONGEST: Final = 60.0
CONFIG: Final = """
node-name = "bench"
cluster-name = "bench"
base-dir = "{folder}"
listen-mode = "tcp"
bind-address = "127.0.0.1:{node}"
disable-telemetry = true
log-filter = "warn"
log-disable-ansi-codes = true
{tuning}
[ingress]
bind-address = "127.0.0.1:{ingress}"
[admin]
bind-address = "127.0.0.1:{admin}"
disable-web-ui = true
"""

TUNING: Final = """
# As shipped it has 24, for clusters: each commits its own log, so that with one commits are larger,
# and on two cores it is faster by half.
default-num-partitions = 1
# The log of a single node, with fsync as the other: an eighth less work than a replicated log
# with one replica, which is what it ships with.
bifrost.default-provider = "local"
"""

creates = restate.Service("creates")


@creates.handler()
async def create(ctx: restate.Context, command: dict[str, Any]) -> None:
    """One create."""
    saga_id, config = command["id"], json.dumps(command["data"])
    # With a serde that is named it need not look at each step's annotations.
    none: JsonSerde[None] = JsonSerde()
    await ctx.run("evolution", peer.evolution, none, args=(saga_id,))
    await ctx.run("postgres", peer.postgres, none, args=(saga_id, config))
    await ctx.run("cache", peer.cache, none, args=(saga_id, config))
    await ctx.run("notify", peer.notify, none, args=(saga_id,))


def _free_ports(count: int) -> list[int]:
    sockets = [socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _start_server(folder: Path, ports: dict[str, int]) -> "subprocess.Popen[bytes]":
    binary = peers.program("restate-server")
    assert binary, "restate-server is not there"
    config = folder / "restate.toml"
    tuning = TUNING if "tuned" in sys.argv else ""
    config.write_text(CONFIG.format(folder=folder, tuning=tuning, **ports))
    # It would take any RESTATE_… for a setting; and being killed, it leaves what it puts in TMPDIR.
    ours = {name: said for name, said in os.environ.items() if not name.startswith("RESTATE_")}
    return subprocess.Popen(
        [binary, "--no-logo", "--config-file", str(config)],
        env=ours | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        # What npm puts on PATH is a launcher: it and the server behind it have to go together.
        start_new_session=True,
    )


async def _register(http: aiohttp.ClientSession, admin: int, handlers: int) -> None:
    """Tell the server where our handlers are, as soon as it listens."""
    until, said = time.monotonic() + LONGEST, ""
    body = {"uri": f"http://127.0.0.1:{handlers}"}
    while time.monotonic() < until:
        with suppress(aiohttp.ClientError):
            async with http.post(f"http://127.0.0.1:{admin}/deployments", json=body) as answer:
                said = await answer.text()
                if answer.status == 201:
                    return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"restate-server took no deployment within {LONGEST:g} s: {said}")


async def _work(ports: dict[str, int], handlers: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await _register(http, ports["admin"], handlers)
        url = f"http://127.0.0.1:{ports['ingress']}/creates/create"

        async def submit(command: peer.Command) -> None:
            # One request that is answered when the outcome is in Restate's log: to send first
            # and attach for the outcome would cost it two. Its key makes it safe to repeat.
            async with http.post(
                url, json=command, headers={"idempotency-key": command["id"]}
            ) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        await peer.work(submit)


async def main(database: str, redis_url: str, stub: str) -> None:
    """Serve the handlers, start the server, and work."""
    handlers, *three = _free_ports(4)
    ports = dict(zip(("ingress", "admin", "node"), three, strict=True))
    app = restate.app([creates])
    serving = Server(
        app,
        address="127.0.0.1",
        port=handlers,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http2,  # streams both ways: a step's outcome needs no request of its own
        log_enabled=False,
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        server = _start_server(Path(folder), ports)
        try:
            task = asyncio.create_task(serving.serve())
            await _work(ports, handlers)
            task.cancel()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


if __name__ == "__main__":
    peer.run(main)
