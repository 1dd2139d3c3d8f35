"""Carries out the faults of a plan, and keeps a count of what it really did."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.redis_clients import masters
from evosaga.events.slots import beside
from evosaga.sagas.whatsapp.steps import routing_key
from tests.harness.chaos.faults import Strike
from tests.harness.chaos.plan import STRANGERS, Plan
from tests.harness.chaos.proxy import Cut, Delay, Fault, Hang, Hole, Refuse
from tests.harness.chaos.topology import Slot, Topology
from tests.support.valkeys import NODE_TIMEOUT, Cluster
from tests.support.waiting import eventually

_MARK_TTL: Final = 3600


@dataclass
class Nemesis:
    """What was done, and when. Times are UNIX seconds."""

    plan: Plan
    topology: Topology
    redis: Redis
    done: Counter[str] = field(default_factory=Counter)
    """Faults that were carried out, by kind; what proxies and Evolution count is not in it."""
    killed: dict[int, float] = field(default_factory=dict)
    """When each process was killed by a kill."""
    redis_lost_at: list[float] = field(default_factory=list)
    copied_at: float | None = None
    refused: list[str] = field(default_factory=list)
    """Faults that could not be carried out, and why."""
    armed: Counter[str] = field(default_factory=Counter)
    """Evolution's own faults that were armed, by mode."""
    fired: dict[str, int] = field(default_factory=dict)
    """How often these have struck, by mode: one that was armed may meet several retries."""
    paired: set[str] = field(default_factory=set)
    """Instances whose QR code somebody has scanned."""
    nodes: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One node of a cluster at a time: the others have to elect another one."""
    servers: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One server at a time is taken away."""
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def run(self, started: float) -> None:
        """Strike when the plan says so; ``started`` is on the loop's clock."""
        loop = asyncio.get_running_loop()
        for strike in self.plan.faults:
            await asyncio.sleep(max(0.0, started + strike.at - loop.time()))
            self._spawn(self._strike(strike))

    async def heal(self) -> None:
        """End every fault, and have Evolution restarted, which an operator would do as well."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.topology.healed = True
        self.topology.waiting.clear()
        for proxy in self.topology.proxies():
            await proxy.heal()
        for slot in self.topology.slots:
            self.topology.wake(slot, slot.pid)
            if slot.armed:  # it must not die of them now
                slot.doomed = "deploy"
                self._signal(slot, signal.SIGKILL)
        await asyncio.to_thread(self.topology.postgres.start_again)
        await asyncio.to_thread(self.topology.valkey.start_again)
        if self.topology.cluster is not None:
            await self._all_well(self.topology.cluster)
        told = await self.topology.evolution.ask("DELETE", "faults")
        self.fired = told["fired"]
        await self.topology.evolution.ask("POST", "restart")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _strike(self, strike: Strike) -> None:
        slot = self.topology.slots[strike.slot % len(self.topology.slots)]
        try:
            match strike.kind:
                case "kill":
                    self._kill(slot)
                case "stop":
                    await self._stop(slot, strike.how["seconds"])
                case "sync" | "deploy":
                    self._deploy(slot, strike)
                case "proxy":
                    await self._proxy(slot, strike)
                case "mode":
                    await self.topology.evolution.ask("POST", "faults", **strike.how)
                    self.armed[strike.how["mode"]] += 1
                case "valkey" if self.topology.cluster is not None:
                    await self._fail_over(self.topology.cluster, strike)
                case "postgres" | "valkey":
                    await self._take_away(strike.kind, strike.how["seconds"])
                case "mark":
                    await self._mark(strike.how["name"], strike.how["wrong"])
                case "drop" | "stranger":
                    await self._by_hand(strike)
                case "pair":
                    await self._pair(strike)
                case _:
                    await self._disaster(strike.kind)
        except (ValueError, OSError, RedisError) as error:
            self.refused.append(f"{strike.kind} at {strike.at}: {error}")

    # -- processes

    def _kill(self, slot: Slot) -> None:
        if slot.process is None or slot.stopped:
            return
        slot.doomed = "kill"
        self.killed[slot.pid] = time.time()
        self._signal(slot, signal.SIGKILL)
        self.done["kill -9"] += 1

    async def _stop(self, slot: Slot, seconds: float) -> None:
        if slot.process is None or slot.stopped:
            return
        pid, slot.stopped = slot.pid, True
        self._signal(slot, signal.SIGSTOP)
        self.done["stop"] += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.topology.wake(slot, pid)

    def _deploy(self, slot: Slot, strike: Strike) -> None:
        """SIGTERM; with a sync point, whoever is started next will meet it."""
        if strike.kind == "sync":
            self.topology.waiting.append(strike)
            if self.topology.deaths and time.time() - self.topology.deaths[-1].at < 1.0:
                return  # somebody is about to be started anyway
        if slot.process is None or slot.stopped or slot.doomed:
            return
        slot.doomed = "deploy"
        self._signal(slot, signal.SIGTERM)
        self.done["deploy"] += 1

    def _signal(self, slot: Slot, number: signal.Signals) -> None:
        if slot.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.pid, number)

    # -- connections

    async def _proxy(self, slot: Slot, strike: Strike) -> None:
        how = strike.how
        if how["service"] == "valkey" and self.topology.cluster is not None:
            await self._fail_over(self.topology.cluster, strike)
            return
        slots = self.topology.slots if how["everybody"] else [slot]
        front = how["service"] == "front"
        proxies = [self.topology.front] if front else [s.proxies[how["service"]] for s in slots]
        if how["everybody"] and how["service"] == "valkey":
            proxies.append(self.topology.publisher)
        fault = _fault(strike)
        for proxy in proxies:
            await proxy.arm(fault)
            if isinstance(fault, Refuse | Hang):
                await proxy.sever()  # so that somebody tries to connect
                if isinstance(fault, Refuse):  # the kernel refuses; nobody asks the proxy
                    proxy.struck()
        try:
            await asyncio.sleep(how["seconds"])
        finally:
            for proxy in proxies:
                await proxy.heal()

    # -- servers

    async def _take_away(self, kind: str, seconds: float) -> None:
        server = self.topology.postgres if kind == "postgres" else self.topology.valkey
        async with self.servers:
            await asyncio.to_thread(server.kill)
            self.done[f"{kind} killed"] += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.shield(asyncio.to_thread(server.start_again))

    async def _fail_over(self, cluster: Cluster, strike: Strike) -> None:
        """A master is killed, is paused for so long that it loses its place, or is told to go."""
        rng = Random(f"{self.plan.seed}/{strike.at}")
        key = rng.choice((streams.COMMANDS, streams.COMMANDS, streams.EVENTS, "whatsapp:instance:"))
        how = rng.choices(("killed", "paused", "told to go"), (3, 1, 1))[0]
        async with self.nodes:
            master = await cluster.master_of(key)
            try:
                if how == "told to go":
                    await cluster.fail_over(master)
                else:
                    (master.kill if how == "killed" else master.pause)()
                    await asyncio.sleep(NODE_TIMEOUT / 1000 + strike.how["seconds"] * 2)
                self.done[f"master {how}"] += 1
            finally:
                await asyncio.shield(self._all_well(cluster))

    async def _all_well(self, cluster: Cluster) -> None:
        """All nodes run, and what the last master had alone is lost."""
        for node in cluster.nodes:
            node.wake()
            node.start()
        with contextlib.suppress(AssertionError):
            await eventually(cluster.well, 30, 0.1)
            await eventually(cluster.replicating, 30, 0.1)
        self.redis_lost_at.append(time.time())

    async def _cluster_disaster(self, cluster: Cluster, kind: str) -> None:
        """All is flushed, or one master of three loses all it had."""
        if kind == "flush":
            for master in await masters(self.redis):
                await master.flushall()
        else:
            await (await cluster.master_of(streams.COMMANDS)).ask("FLUSHALL")
        self.redis_lost_at.append(time.time())
        self.done["FLUSHALL" if kind == "flush" else "FLUSHALL of one master"] += 1

    async def _disaster(self, kind: str) -> None:
        if (nodes := self.topology.cluster) is not None and kind in ("flush", "aof.restore"):
            await self._cluster_disaster(nodes, kind)
            return
        data = self.topology.valkey.folder / "valkey" / "data"
        copy = self.topology.folder / "valkey.copy"
        match kind:
            case "flush":
                await self.redis.flushall()
                self.redis_lost_at.append(time.time())
                self.done["FLUSHALL"] += 1
            case "aof.copy":
                async with self.servers:
                    await asyncio.to_thread(shutil.copytree, data, copy)
                    self.copied_at = time.time()
            case "aof.restore" if self.copied_at is not None:
                async with self.servers:
                    await asyncio.to_thread(self.topology.valkey.kill)
                    await asyncio.to_thread(shutil.rmtree, data)
                    await asyncio.to_thread(shutil.copytree, copy, data)
                    self.redis_lost_at.append(time.time())
                    await asyncio.to_thread(self.topology.valkey.start_again)
                    self.done["older append-only file"] += 1
            case "snapshot":
                await self.topology.evolution.ask("POST", "snapshot")
            case "restore":
                await self.topology.evolution.ask("POST", "restore")
                self.done["evolution restored from a backup"] += 1

    # -- by hand

    async def _mark(self, name: str, wrong: bool) -> None:
        """What the removal of an instance leaves in Redis, before there is one; or nonsense."""
        key = beside(
            self.redis, routing_key.key(name), f"evosaga:removed:{name}", "evosaga:removed"
        )
        if wrong:
            await self.redis.delete(key)
            pushed: Any = self.redis.rpush(key, "not a string")
            await pushed
        else:
            await self.redis.set(key, name.removeprefix("wa-"), ex=_MARK_TTL)
        self.done["mark by hand"] += 1

    async def _pair(self, strike: Strike) -> None:
        """Somebody scans a QR code: no fault, but what follows from it has to arrive."""
        told = await self.topology.evolution.ask("GET", "instances")
        names = sorted(view["name"] for view in told["live"] if view["state"] == "connecting")
        if names:
            name = Random(f"{self.plan.seed}/{strike.at}").choice(names)
            await self.topology.evolution.ask("POST", "pair", name=name)
            self.paired.add(name)

    async def _by_hand(self, strike: Strike) -> None:
        """Somebody drops an instance, or a stranger puts one of the same name in its place."""
        told = await self.topology.evolution.ask("GET", "instances")
        names = sorted(row["name"] for row in told["rows"] if row["name"] not in STRANGERS)
        if not names:
            return
        name = Random(f"{self.plan.seed}/{strike.at}").choice(names)
        route = "drop" if strike.kind == "drop" else "foreign"
        await self.topology.evolution.ask("POST", route, name=name)
        self.done["dropped by hand" if strike.kind == "drop" else "replaced by a stranger"] += 1


def _fault(strike: Strike) -> Fault:
    how = strike.how
    match how["how"]:
        case "cut":
            match_ = how["match"].encode()
            return Cut(how["direction"], how["after"], match_, how["times"])
        case "hole":
            whole = how["direction"] == "up"
            return Hole(("up", "down") if whole else ("down",), how["match"].encode())
        case "delay":
            return Delay(how["delay"])
        case "refuse":
            return Refuse()
        case _:
            return Hang()
