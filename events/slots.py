"""Keys that one script or command uses together, on a single Redis and on a Redis Cluster.

A cluster takes a script, a transaction or an MGET only when all its keys are in one hash slot. A
key whose name is a promise (``whatsapp:instance:…``, ``evosaga:events``) stays what it is, and a
key that belongs to it gets the whole of that name as its hash tag, which puts it into the same
slot: ``evosaga:filled:{whatsapp:instance:wa-1}``. On a single Redis it has its plain name.
"""

import itertools

from redis.asyncio import Redis
from redis.crc import key_slot

from evosaga.events.redis_clients import prefix_of


def in_cluster(redis: "Redis") -> bool:
    """Whether it is a client of a cluster: ours, or redis-py's ``RedisCluster``."""
    return hasattr(redis, "nodes_manager")


def beside(redis: "Redis", key: str, plain: str, word: str | None = None) -> str:
    """The name of a key that is used together with ``key``.

    ``plain``: its name on a single Redis. ``word``: what comes before the hash tag, ``plain``
    itself unless something in it would only be repeated; without braces.
    """
    if not in_cluster(redis):
        return plain
    prefix, word = prefix_of(redis), word or plain
    slot = key_slot((prefix + key).encode())
    for name in (f"{word}:{{{prefix}{key}}}", plain):
        if key_slot((prefix + name).encode()) == slot:
            return name
    # A name with braces of its own, which no tag can hold: any other tag of that slot.
    tag = next(n for n in itertools.count() if key_slot(str(n).encode()) == slot)
    return f"{word}:{{{tag}}}:{plain}"


def same_slot(redis: "Redis", *keys: str) -> bool:
    """Whether one script or transaction may use these keys."""
    prefix = prefix_of(redis)
    return not in_cluster(redis) or len({key_slot((prefix + key).encode()) for key in keys}) == 1
