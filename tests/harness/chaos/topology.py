"""What a run is made of: real Postgres and Valkey, Evolution, the proxies, workers and an API.

Every worker, and the API, reaches the three servers through proxies of its own, so that one can be
cut off while the others go on. The publisher has a proxy as well, and there is one before the API,
where Evolution delivers its webhooks. Whoever judges goes straight.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

import aiohttp

from evosaga.events import syncpoints
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.os_support import end_with_parent
from evosaga.orchestrator.local.servers import local_servers
from tests.harness.chaos.faults import LEASE, QUIET, WATCH_AFTER, Strike
from tests.harness.chaos.proxy import Proxy, through, upstream_of
from tests.support.valkeys import Cluster, cluster

HTTP_KEY: Final = "canary-key-of-the-http-api-81c4d05e"
API_KEY: Final = 'canary+key/"of the"=whole%run&7Q'
SECRET: Final = "canary-secret-key-of-the-run-3f9a1c77"
_ARMED_AT_ONCE: Final = 3
SERVER_AWAY: Final = 3
"""Exit code of a worker that could not start because a server was away."""
_ROOT: Final = Path(__file__).parents[3]
_VARIABLES: Final = {
    "evolution": "EVOSAGA_EVOLUTION_URL",
    "postgres": "EVOSAGA_DATABASE_URL",
    "valkey": "EVOSAGA_REDIS_URL",
}


@dataclass
class Death:
    """A worker that ended: when (UNIX seconds), and whether we killed it."""

    pid: int
    at: float
    code: int | None
    by: str
    """kill, sync, deploy, or "" when it ended by itself."""


@dataclass
class Slot:
    """A place for a process, with the proxies that all who ever run there go through."""

    number: int
    proxies: Mapping[str, Proxy]
    log: Path
    words: Sequence[str] = ("worker",)
    """The verb that runs here."""
    process: ForkServerProcess | None = None
    armed: dict[Path, Strike] = field(default_factory=dict)
    """Sync points that may strike its worker, by the file that says that one has."""
    doomed: str = ""
    """What we have just done to end its worker."""
    stopped: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid or 0 if self.process is not None else 0


@dataclass
class Topology:
    """All processes of a run."""

    folder: Path
    postgres: LocalServer
    valkey: LocalServer
    evolution: "Evolution"
    slots: list[Slot]
    publisher: Proxy
    front: Proxy
    """What stands before the API."""
    cluster: Cluster | None = None
    """In place of ``valkey``, which then does nothing. No proxy stands before its nodes."""
    deaths: list[Death] = field(default_factory=list)
    waiting: deque[Strike] = field(default_factory=deque)
    """Sync points that the next processes to be started get, if they ever come there."""
    struck: Counter[str] = field(default_factory=Counter)
    """Sync points that have struck."""
    healed: bool = False
    """No more sync points."""
    closing: bool = False

    def proxies(self) -> Iterator[Proxy]:
        for slot in self.slots:
            yield from slot.proxies.values()
        yield self.publisher
        yield self.front

    @property
    def redis_url(self) -> str:
        """Where whoever judges finds Redis."""
        return self.valkey.url if self.cluster is None else self.cluster.url

    @property
    def workers(self) -> "list[Slot]":
        return [slot for slot in self.slots if slot.words[0] == "worker"]

    async def supervise(self) -> None:
        """Start a worker in every slot, and another whenever one ends, whatever its exit code."""
        while not self.closing:
            for slot in self.slots:
                if slot.process is None:
                    self._start(slot)
                elif (code := slot.process.exitcode) is not None:
                    self._bury(slot, code)
                    if code != SERVER_AWAY:
                        self._start(slot)
                else:
                    self._look_for_a_stop(slot)
            await asyncio.sleep(0.05)

    def _start(self, slot: Slot) -> None:
        from tests.harness.chaos.worker import start_worker

        environment = self.environment(slot)
        for strike in list(self.waiting):
            fits = strike.how["at"].startswith(("api.", "wh.")) == (slot.words[0] != "worker")
            if fits and len(slot.armed) < _ARMED_AT_ONCE:
                slot.armed[self.folder / f"sync-{time.monotonic_ns()}"] = strike
                self.waiting.remove(strike)
        armed = [{**strike.how, "once": str(mark)} for mark, strike in slot.armed.items()]
        environment[syncpoints.VARIABLE] = json.dumps(armed)
        slot.process = start_worker(environment, slot.log, slot.words)

    def _bury(self, slot: Slot, code: int) -> None:
        assert slot.process is not None
        by = slot.doomed
        for mark, strike in slot.armed.items():
            if mark.exists():
                self.struck[str(strike.how["at"])] += 1
                by = by or "sync"
            elif not self.healed:
                self.waiting.append(strike)  # it was killed before it came there
        self.deaths.append(Death(slot.pid, time.time(), code, by))
        slot.process.close()
        slot.armed.clear()
        slot.process, slot.doomed, slot.stopped = None, "", False

    def _look_for_a_stop(self, slot: Slot) -> None:
        """A worker that has stopped itself at a sync point is woken when its lease is over."""
        for mark, strike in list(slot.armed.items()):
            if strike.how["do"] == "stop" and mark.exists():
                self.struck[str(strike.how["at"])] += 1
                del slot.armed[mark]
                slot.stopped = True
                asyncio.get_running_loop().call_later(LEASE * 1.6, self.wake, slot, slot.pid)

    def wake(self, slot: Slot, pid: int) -> None:
        """SIGCONT, if it is still the same process that we stopped."""
        if slot.pid == pid and slot.stopped:
            slot.stopped = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def environment(self, slot: Slot) -> dict[str, str]:
        """What a worker of this slot is told."""
        servers = {
            "evolution": self.evolution.url,
            "postgres": self.postgres.url,
            "valkey": self.valkey.url,
        }
        found = {
            _VARIABLES[name]: through(url, slot.proxies[name]) for name, url in servers.items()
        }
        if self.cluster is not None:
            found[_VARIABLES["valkey"]] = self.cluster.url
        return found | {
            "EVOSAGA_EVOLUTION_API_KEY": API_KEY,
            "EVOSAGA_API_KEYS": f"chaos:{HTTP_KEY}",
            "EVOSAGA_PUBLIC_URL": f"http://127.0.0.1:{self.front.port}",
            "EVOSAGA_SECRET_KEY": SECRET,
            "EVOSAGA_LEASE_SECONDS": str(LEASE),
            "EVOSAGA_QUIET_SECONDS": str(QUIET),
            "EVOSAGA_WATCH_AFTER": json.dumps(WATCH_AFTER),
            "EVOSAGA_EVOLUTION_TIMEOUT": "5",
            "EVOSAGA_ORPHANS_EVERY": "5",
            "EVOSAGA_RECONCILE_EVERY": "15",
            "EVOSAGA_HEALTH_EVERY": "5",
            "EVOSAGA_LOG_FORMAT": "json",
            "EVOSAGA_LOG_LEVEL": "debug",
        }

    async def close(self) -> None:
        """End all workers; the servers end with the context that made them."""
        self.closing = True
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
        for slot in self.slots:
            if slot.process is not None:
                await asyncio.to_thread(slot.process.join, 10)


class Evolution:
    """The simulated Evolution server, a process of its own, and its control routes."""

    def __init__(self, url: str, journal: Path, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.journal = journal
        self._http = http

    async def ask(self, method: str, route: str, **body: Any) -> Any:
        """One control request. Raises ``ValueError`` with what the server has against it."""
        url = f"{self.url}/__control__/{route}"
        async with self._http.request(method, url, json=body) as answer:
            told = await answer.json()
        if answer.status != 200:
            raise ValueError(f"{route}: {told['error']}")
        return told


@contextlib.asynccontextmanager
async def simulated_evolution(folder: Path, version: str, seed: int) -> AsyncIterator[Evolution]:
    """Start the server and wait for its address; it ends with the context, and with us."""
    journal = folder / "evolution.jsonl"
    words = ["simulate-evolution", "--json", "--journal", str(journal), "--api-key", API_KEY]
    words += ["--version", version, "--seed", str(seed), "--pace", "0.3"]
    process = _spawn(words, folder)
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            yield Evolution(json.loads(line)["url"], journal, http)
    finally:
        process.kill()
        process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _spawn(words: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    program = f"import sys; from evosaga.orchestrator.cli import main; sys.exit(main({words!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_parent(signal.SIGKILL),
    )


@contextlib.asynccontextmanager
async def topology(
    folder: Path, *, workers: int, version: str, seed: int, clustered: bool = False
) -> AsyncIterator[Topology]:
    """Start everything but the workers, which ``supervise`` starts."""
    from evosaga import migrations

    async with contextlib.AsyncExitStack() as stack:
        servers = stack.enter_context(local_servers())
        await migrations.migrate(servers.postgres.url)
        evolution = await stack.enter_async_context(simulated_evolution(folder, version, seed))
        urls = {
            "evolution": evolution.url,
            "postgres": servers.postgres.url,
            "valkey": servers.valkey.url,
        }
        slots = []
        for number in range(workers + 1):  # the last one is the API's
            proxies = {
                name: await stack.enter_async_context(Proxy(upstream_of(url)))
                for name, url in urls.items()
            }
            name = f"worker-{number}" if number < workers else "api"
            slots.append(Slot(number, proxies, folder / f"{name}.log"))
        port = _free_port()
        slots[-1].words = ("api", "--port", str(port))
        publisher = await stack.enter_async_context(Proxy(upstream_of(servers.valkey.url)))
        front = await stack.enter_async_context(Proxy(("127.0.0.1", port)))
        made = Topology(
            folder, servers.postgres, servers.valkey, evolution, slots, publisher, front
        )
        if clustered:
            of_each = cluster(folder / "cluster", replicas_of=(0, 1, 2))
            made.cluster = await stack.enter_async_context(of_each)
        try:
            yield made
        finally:
            await made.close()
            for server in servers:  # nobody needs the data, and an orderly end takes longer
                await asyncio.to_thread(server.kill)
