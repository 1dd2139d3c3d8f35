"""Several Valkeys of a test's own: a cluster, and a master with replicas and Sentinels."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.orchestrator.local.binaries import find_valkey
from evosaga.orchestrator.local.os_support import end_with_parent
from tests.support.waiting import eventually

SERVICE = "chaos-master"
NODE_TIMEOUT = 1500
"""Milliseconds after which a silent node of a cluster is taken for failed."""


@dataclass
class Valkey:
    """One server, on a port of its own."""

    folder: Path
    port: int
    options: list[str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, or start it again with what it has."""
        if self.process is not None and self.process.poll() is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(find_valkey().path), *self.options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent(signal.SIGKILL),
            )

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing is said."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    async def ask(self, *words: Any) -> Any:
        """One command on a connection of its own."""
        async with Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2) as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(await self.ask("PING"))
        return False


@dataclass
class Cluster:
    """A Redis Cluster: every node, the masters of the beginning first."""

    nodes: list[Valkey]
    announced: dict[int, int] = field(default_factory=dict)
    """The port that each node tells clients, where that is another one."""

    @property
    def url(self) -> str:
        ports = (self.announced.get(node.port, node.port) for node in self.nodes)
        return f"redis+cluster://{','.join(f'127.0.0.1:{port}' for port in ports)}/"

    async def master_of(self, key: str) -> Valkey:
        """The node that has the key now, as a node that is not paused sees it."""
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError):
                slot = int(await node.ask("CLUSTER", "KEYSLOT", key))
                for first, last, master, *_ in await self._slots(node):
                    if first <= slot <= last:
                        return self._node(int(master[1]))
        raise AssertionError(f"no node knows who has {key}")

    async def replicas_of(self, master: Valkey) -> list[Valkey]:
        for node in self.nodes:
            with contextlib.suppress(RedisError, OSError):
                for _, _, first, *others in await self._slots(node):
                    if self._node(int(first[1])) is master:
                        return [self._node(int(one[1])) for one in others]
        return []

    async def fail_over(self, master: Valkey) -> Valkey:
        """Let a replica of this living master take its place; which one."""
        [heir, *_] = await self.replicas_of(master)
        await heir.ask("CLUSTER", "FAILOVER")
        return heir

    async def well(self) -> bool:
        """Whether every node that runs sees every slot served."""
        try:
            told = [await node.ask("CLUSTER INFO") for node in self.nodes]
        except (RedisError, OSError):
            return False
        return all(
            one["cluster_state"] == "ok" and one["cluster_slots_ok"] == "16384" for one in told
        )

    async def replicating(self) -> bool:
        """Whether every replica follows its master, and every node knows of all of them."""
        for node in self.nodes:
            known = {int(one[1]) for _, _, *nodes in await self._slots(node) for one in nodes}
            if len(known) != len(self.nodes):
                return False
            async with Redis.from_url(node.url) as client:
                told: Any = await client.info("replication")
            if told["role"] == "slave" and told["master_link_status"] != "up":
                return False
        return True

    async def _slots(self, node: Valkey) -> Any:
        async with Redis.from_url(node.url, socket_timeout=2) as client:
            client.response_callbacks.clear()
            return await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]

    def _node(self, port: int) -> Valkey:
        ports = {self.announced.get(node.port, node.port): node for node in self.nodes}
        return ports[port]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on that port and 10,000, where a cluster's nodes talk."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
        return found


@contextlib.asynccontextmanager
async def cluster(folder: Path, replicas_of: Sequence[int] = ()) -> AsyncIterator[Cluster]:
    """Three masters, and a replica of each of these; all are killed at the end."""
    masters = 3
    ports = free_ports((masters + len(replicas_of)) * 2)
    nodes = []
    for number, (port, bus) in enumerate(zip(ports[::2], ports[1::2], strict=True)):
        own = folder / f"node-{number}"
        options = _options(own, port) | {
            "--cluster-enabled": "yes",
            "--cluster-port": str(bus),
            "--cluster-node-timeout": str(NODE_TIMEOUT),
            "--cluster-require-full-coverage": "no",
        }
        nodes.append(Valkey(own, port, [word for pair in options.items() for word in pair]))
    made = Cluster(nodes)
    with _running(nodes):
        await eventually(lambda: _all_answer(nodes), 20)
        for number, node in enumerate(nodes[:masters]):
            first, last = 16384 * number // masters, 16384 * (number + 1) // masters - 1
            await node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        for number, node in enumerate(nodes):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            await node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, ports[1])
        await eventually(made.well, 20, message="the cluster to be up")
        for number, node in zip(replicas_of, nodes[masters:], strict=True):
            id_ = await nodes[number].ask("CLUSTER", "MYID")
            await node.ask("CLUSTER", "REPLICATE", id_)
        await eventually(made.replicating, 20, message="the replicas to follow")
        yield made


@contextlib.asynccontextmanager
async def lone_node(folder: Path) -> AsyncIterator[Valkey]:
    """A node of a cluster that nobody has made yet: it has no slots, and knows no other."""
    port, bus = free_ports(2)
    options = _options(folder, port) | {"--cluster-enabled": "yes", "--cluster-port": str(bus)}
    node = Valkey(folder, port, [word for pair in options.items() for word in pair])
    with _running([node]):
        await eventually(node.answers, 20)
        yield node


@dataclass
class Watched:
    """A master, its replicas, and the Sentinels that watch them."""

    servers: list[Valkey]
    sentinels: list[Valkey]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def master(self) -> Valkey:
        """The master, as the first Sentinel has it."""
        told = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(told[1]))


@contextlib.asynccontextmanager
async def watched(folder: Path, replicas: int = 1, sentinels: int = 3) -> AsyncIterator[Watched]:
    """A master with replicas, watched by Sentinels; all are killed at the end."""
    ports = free_ports(1 + replicas + sentinels)
    servers = []
    for port in ports[: 1 + replicas]:
        options = _options(folder / f"server-{port}", port)
        if port != ports[0]:
            options["--replicaof"] = f"127.0.0.1 {ports[0]}"
        words = [word for pair in options.items() for word in pair]
        servers.append(Valkey(folder / f"server-{port}", port, words))
    watching = []
    for port in ports[1 + replicas :]:
        own = folder / f"sentinel-{port}"
        own.mkdir(parents=True)
        (own / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel resolve-hostnames no\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} {sentinels // 2 + 1}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 4000\n"
        )
        watching.append(Valkey(own, port, ["sentinel.conf", "--sentinel"]))
    made = Watched(servers, watching)
    with _running([*servers, *watching]):
        await eventually(lambda: _all_answer([*servers, *watching]), 20)

        async def known() -> bool:
            told = [await one.ask("SENTINEL MASTER", SERVICE) for one in watching]
            return all(
                int(one["num-slaves"]) == replicas
                and int(one["num-other-sentinels"]) == sentinels - 1
                for one in told
            )

        await eventually(known, 30, message="the Sentinels to know each other and the replicas")
        yield made


def _options(folder: Path, port: int) -> dict[str, str]:
    return {
        "--port": str(port),
        "--bind": "127.0.0.1",
        "--dir": str(folder),
        "--save": "",
        "--appendonly": "yes",
        "--appendfsync": "no",
        "--repl-diskless-sync-delay": "0",
        "--repl-ping-replica-period": "1",
        "--daemonize": "no",
    }


@contextlib.contextmanager
def _running(servers: list[Valkey]) -> Iterator[None]:
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.kill()


async def _all_answer(servers: list[Valkey]) -> bool:
    return all(await asyncio.gather(*(server.answers() for server in servers)))
