"""A client of a Redis Cluster that looks like one of a single Redis.

redis-py knows the topology (which node has which hash slot); every node gets a client of its own,
so that commands share pipelines with those for the same node, and a node that hangs holds up no
other. MOVED and ASK are followed. What passes by itself (a failover, a slot that is being moved) is
tried again a few times and then raised, as a Redis that is away is.

redis-py's own ``RedisCluster`` (8.1) is not enough: it asks one node where the keys of XREADGROUP
are and never another one when that node is gone, its pipelines don't learn of a failover without
``raise_on_error``, and its transactions start a thread for each command.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.cluster import PRIMARY, get_node_name
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events.any_node import AnyNodeTcp, AnyNodeTls
from evosaga.events.auto_pipeline import AutoPipelineRedis
from evosaga.events.key_prefix import PrefixedPipeline, keys_of, prefixed
from evosaga.events.redis_address import Address, Node
from evosaga.events.redis_connections import CONNECTIONS, TIMEOUT, client_of

_PASSING: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    BusyLoadingError,
    TryAgainError,
)
_PAUSES: Final = (0.05, 0.2, 0.5)
"""Seconds before another try of what may pass soon; then the caller has to wait."""
_REDIRECTS: Final = 5
_HOME: Final = "evosaga:commands"
"""Whose node is asked what has no key, such as PING and TIME."""
_Answer = TypeVar("_Answer")


class ClusterRedis(AutoPipelineRedis):
    """Like ``Redis``, for commands whose keys are in one slot.

    Commands without a key are asked of the node that has the stream of commands. Those that
    ``evosaga.events.key_prefix`` does not know are left to redis-py, which asks the server where
    their keys are.
    """

    topology: RedisCluster
    seeds: Sequence[Node]
    options: dict[str, Any]
    kind: type[Redis]
    """Of the clients of its nodes."""
    _clients: dict[str, Redis]

    @property
    def nodes_manager(self) -> Any:
        """The topology, as redis-py knows it."""
        return self.topology.nodes_manager

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send it to the node that has its keys. Raises what that says, or the way to it."""
        try:
            slot = self._slot([args])
        except ValueError:
            if self.prefix:
                raise
            return await self._left_to_redis_py(args, options)

        async def ask(node: Redis, asking: bool) -> Any:
            if not asking:
                return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]
            pipeline = node.pipeline(transaction=False)
            pipeline.execute_command("ASKING")
            pipeline.execute_command(*args, **options)
            return (await pipeline.execute())[1]

        return await self.routed(slot, ask)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """Commands that go together; with ``transaction`` all their keys are in one slot."""
        pipeline = _ClusterPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.owner = self
        return pipeline

    async def transaction_of(self, commands: Sequence[Any], raise_on_error: bool) -> list[Any]:
        """MULTI and EXEC around commands of one slot; all or nothing. Raises like a command."""

        async def ask(node: Redis, asking: bool) -> list[Any]:
            pipeline = node.pipeline(transaction=True)
            if asking:
                raise TryAgainError("a slot is being moved")
            for args, options in commands:
                pipeline.execute_command(*args, **options)
            answers: list[Any] = await pipeline.execute(raise_on_error=raise_on_error)
            return answers

        return await self.routed(self._slot([args for args, _ in commands]), ask)

    async def routed(self, slot: int, ask: Callable[[Redis, bool], Awaitable[_Answer]]) -> _Answer:
        """What the node that has the slot answers. ``ask`` may be called several times."""
        failed: str | None = None
        asked_at: str | None = None
        redirects, pauses = _REDIRECTS, list(_PAUSES)
        while True:
            name = ""
            try:
                if failed is not None or not self.nodes_manager.slots_cache:
                    await self.refresh(failed)
                name = asked_at or self._owner(slot)
                return await ask(self._client(name), asked_at is not None)
            except MovedError as moved:
                failed, asked_at = None, None
                redirects -= 1
                if not redirects:
                    raise RedisConnectionError("the cluster sends us round in circles") from moved
                await self._moved(moved, slot, name)
            except AskError as elsewhere:
                failed, asked_at = None, get_node_name(elsewhere.host, elsewhere.port)
                redirects -= 1
                if not redirects:
                    raise RedisConnectionError("the cluster sends us round in circles") from None
            except _PASSING:
                failed, asked_at = name, None
                if not pauses:
                    raise
                await asyncio.sleep(pauses.pop(0))

    async def refresh(self, failed: str | None = None) -> None:
        """Ask the nodes for the topology, the one that failed last. Raises ``RedisError``."""
        try:
            await self.nodes_manager.initialize(last_failed_node_name=failed or None)
        except (RedisClusterException, IndexError) as error:  # the latter: no node has slots
            self._ask_seeds_next()
            if isinstance(error.__cause__, RedisError):
                raise error.__cause__ from None
            raise RedisConnectionError("no node of the cluster answers") from error
        gone = [name for name in self._clients if name not in self.nodes_manager.nodes_cache]
        for client in [self._clients.pop(name) for name in gone]:
            await client.aclose()

    async def masters(self) -> list[Redis]:
        """A client of every master, as the cluster is now. Raises ``RedisError``."""
        await self.refresh()
        found = self.nodes_manager.get_nodes_by_server_type(PRIMARY)
        return [self._client(node.name) for node in found]

    def places(self) -> list[Node]:
        """Nodes that may answer, those that are known before those of the URL."""
        known = [(str(n.host), int(n.port)) for n in self.nodes_manager.nodes_cache.values()]
        return list(dict.fromkeys([*known, *self.seeds]))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        await super().aclose(close_connection_pool)
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            await client.aclose()
        await self.topology.aclose()
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")

    def _slot(self, commands: Sequence[Sequence[Any]]) -> int:
        """The slot of all their keys. Raises ``ValueError``, and ``ClusterCrossSlotError``."""
        keys = [key for one in commands for key in keys_of(prefixed(self.prefix, one))]
        keys = keys or [self.prefix + _HOME]
        slots = {key_slot(key if isinstance(key, bytes) else str(key).encode()) for key in keys}
        if len(slots) > 1:
            raise ClusterCrossSlotError(f"Keys of {commands[0][0]} don't hash to the same slot")
        return slots.pop()

    def _owner(self, slot: int) -> str:
        nodes = self.nodes_manager.slots_cache.get(slot)
        if not nodes:
            raise ClusterDownError("CLUSTERDOWN Hash slot not served")
        return str(nodes[0].name)

    def _client(self, name: str) -> Redis:
        """The client of a node. Raises ``RedisConnectionError`` for one that is not known."""
        if (client := self._clients.get(name)) is not None:
            return client
        host, _, port = name.rpartition(":")
        where = {"host": host, "port": int(port)}
        # Without retries of its own: the next one may have to go to another node.
        client = client_of(self.options | where, self.kind)
        if isinstance(client, AutoPipelineRedis):
            client.prefix = self.prefix
        self._clients[name] = client
        return client

    async def _moved(self, moved: MovedError, slot: int, asked: str) -> None:
        """Another node has the slot now: ask all about it, and else believe what was said."""
        with contextlib.suppress(*_PASSING):  # what passes is no reason not to follow
            if self._owner(slot) == asked:
                await self.refresh()
        with contextlib.suppress(ClusterDownError):
            if self._owner(slot) == asked:
                await self.nodes_manager.move_slot(moved)

    def _ask_seeds_next(self) -> None:
        """The nodes that were known are gone, and the URL may lead to others by now."""
        for node in (ClusterNode(*seed, **self.topology.connection_kwargs) for seed in self.seeds):
            self.nodes_manager.startup_nodes.setdefault(node.name, node)

    async def _left_to_redis_py(self, args: Sequence[Any], options: Any) -> Any:
        try:
            await self.topology.initialize()
            return await self.topology.execute_command(*args, **options)
        except (RedisClusterException, IndexError) as error:
            raise RedisConnectionError("the cluster can't be asked") from error


class _ClusterPipeline(PrefixedPipeline):
    """Queues commands; without a transaction they are sent side by side, to their nodes."""

    owner: ClusterRedis

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue it."""
        self.command_stack.append((args, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers in their order. Raises the first error unless it is to be among them."""
        stack, self.command_stack = self.command_stack, []
        if not stack:
            return []
        if self.is_transaction:
            return await self.owner.transaction_of(stack, raise_on_error)
        asked = (self.owner.execute_command(*args, **options) for args, options in stack)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        return list(answers)


def connect(
    address: Address,
    options: dict[str, Any],
    prefix: str = "",
    kind: type[Redis] = AutoPipelineRedis,
) -> ClusterRedis:
    """A client of a cluster, which connects when it is first asked.

    Of a ``kind`` that pipelines by itself it is not for commands that block, and a prefix needs it.
    """
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(*node) for node in address.nodes],
        require_full_coverage=False,
        **options_of_cluster(address, options),
    )
    seeds = address.nodes

    def places() -> list[Node]:
        return client.places()

    connection = AnyNodeTls if address.tls else AnyNodeTcp
    shared = {name: value for name, value in options.items() if name not in ("host", "port")}
    pool = BlockingConnectionPool(
        **shared | {"connection_class": connection, "places": places},
        max_connections=CONNECTIONS,
        timeout=TIMEOUT,
    )
    client = cast(ClusterRedis, ClusterRedis.from_pool(pool))
    client.topology, client.seeds, client.options = cluster, seeds, options
    client.prefix, client.kind, client._clients = prefix, kind, {}
    return client


def options_of_cluster(address: Address, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a connection as redis-py's ``RedisCluster`` takes them."""
    no_options = ("host", "port", "db", "connection_class")
    kept = {name: value for name, value in options.items() if name not in no_options}
    return kept | ({"ssl": True} if address.tls else {})
