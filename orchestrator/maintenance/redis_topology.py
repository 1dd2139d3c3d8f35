"""Whether the URL fits what is there: a single Redis, a Redis Cluster, or Sentinels."""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events import redis_address, redis_connections
from evosaga.events.redis_address import Address, Node
from evosaga.events.streams import as_text

_SLOTS: Final = 16384
_KINDS: Final[dict[str, tuple[str, redis_address.Kind]]] = {
    "standalone": ("it is in no cluster", "single"),
    "cluster": ("it is a node of a Redis Cluster", "cluster"),
    "sentinel": ("it is a Sentinel", "sentinel"),
}


async def mode_and_role(redis: Redis) -> tuple[str, str]:
    """``standalone``, ``cluster`` or ``sentinel``, and ``master`` or ``replica``.

    Nothing when it may not be asked.
    """
    try:
        told = await redis.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except ResponseError:
        return "", ""
    pairs = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=False))
    return as_text(pairs.get(b"mode", b"")), as_text(pairs.get(b"role", b""))


async def other_kind(redis: Redis, mode: str) -> tuple[str, str]:
    """What a server is that the URL does not fit, and the cure with the right URL."""
    options: dict[str, Any] = redis.connection_pool.connection_kwargs
    said, kind = _KINDS[mode]
    service = "SERVICE"
    if kind == "sentinel":
        with contextlib.suppress(RedisError, ValueError):
            service = next(iter(await _services(redis)), service)
    node = (str(options.get("host", "localhost")), int(options.get("port", 6379)))
    # Redis's user is not the Sentinel's, which may have none.
    user = kind != "sentinel" and bool(options.get("password"))
    tls = issubclass(redis.connection_pool.connection_class, SSLConnection)
    url = redis_address.shown(kind, node, tls=tls, user=user, service=service)
    return said, f"set EVOSAGA_REDIS_URL to {url}"


async def misfit(address: Address, options: dict[str, Any]) -> str | None:
    """Why a URL of several servers does not fit them, with the right one; None when it does.

    Raises what the last one raises when none of them answers.
    """
    trouble: RedisError | None = None
    watched: list[str] | None = None
    for host, port in address.nodes:
        client = _plainly(address, options, (host, port))
        try:
            mode, _ = await mode_and_role(client)
            if mode and _KINDS[mode][1] != address.kind:
                said, cure = await other_kind(client, mode)
                return f"{said}: {cure}"
            if address.kind == "cluster":
                return None
            watched = sorted({*(watched or ()), *await _services(client)})
            if address.service in watched:
                return None
        except (RedisConnectionError, RedisTimeoutError) as error:
            trouble = error
        finally:
            await client.aclose()
    if watched is None and trouble is not None:
        raise trouble
    names = f"; they watch {', '.join(watched)}" if watched else ""
    return (
        f"the Sentinels know no service {address.service!r}{names}: write its name after the hosts"
    )


async def unserved(redis: Redis) -> tuple[str, str] | None:
    """Which part of a cluster is served by nobody, and the cure. Asked of one of its nodes."""
    try:
        told: Any = await redis.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
    except ResponseError:  # it may not be asked
        return None
    served = int(told["cluster_slots_ok"])
    if told["cluster_state"] == "ok" and served == _SLOTS:
        return None
    said = f"{_SLOTS - served} of its {_SLOTS} hash slots are served by no node"
    cure = "what is kept there has to wait: redis-cli --cluster check HOST:PORT says which"
    return (said if served < _SLOTS else "the cluster's state is not ok"), cure


def _plainly(address: Address, options: dict[str, Any], node: Node) -> Redis:
    """A client of this node alone."""
    from evosaga.events.redis_sentinel import options_of_sentinels

    host, port = node
    if address.kind == "sentinel":
        return Redis(host=host, port=port, **options_of_sentinels(address, options))
    return redis_connections.client_of(options | {"host": host, "port": port})


async def _services(sentinel: Redis) -> Sequence[str]:
    """The names of what a Sentinel watches. Raises ``RedisError``."""
    told: Any = await sentinel.execute_command("SENTINEL MASTERS")  # type: ignore[no-untyped-call]
    return sorted(as_text(name) for name in told)
