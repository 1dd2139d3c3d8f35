"""The webhook inbox: events are stored and answered at once, and processed afterwards.

Postgres must have an event before it is answered, or Redis, for what the routing workers get;
without them the answer is a 503, and Evolution comes again, for twenty minutes. A QR code goes to
Redis alone, and is no reason for a 503: the next one follows, or is asked for.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, TypeAlias
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import syncpoints
from evosaga.events.batching import Batcher
from evosaga.events.connection_errors import reason
from evosaga.events.database import Pool
from evosaga.orchestrator.routing import ClinicCache
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.orchestrator.whatsapp.webhooks.payloads import ConnectionHint, Message
from evosaga.orchestrator.whatsapp.webhooks.stream_entry import entry
from evosaga.sagas.whatsapp.steps import routing_key

_logger = structlog.get_logger("evosaga.webhooks")
_DEADLINE: Final = 4.0
"""Seconds for all of it, so that a server that hangs is a 503 and not a hanging answer."""
_QR_DEADLINE: Final = 1.0
_REPEATS_SECONDS: Final = 5.0
"""While WhatsApp is unreachable Evolution sends "connecting" sixty times a second for each
instance. One in so many seconds says as much, since it is a hint to look and nothing more."""
_KEPT: Final = 10_000
_BATCH: Final = 500
_REMEMBER: Final = 1800
"""Seconds that a message is remembered for; Evolution delivers again for about 1215."""


_Stored: TypeAlias = tuple[ConnectionHint, UUID | None]


class Taken(StrEnum):
    """What became of a delivery."""

    STORED = "stored"
    REPEATED = "repeated"
    QUEUED = "queued"
    IGNORED = "ignored"


class RetryLater(Exception):
    """It can't be taken now, and Evolution should deliver it again."""


class Inbox:
    """One a process. ``secrets`` are never handed on, wherever in a message they stand."""

    def __init__(self, pool: Pool, redis: Redis, secrets: Sequence[str] = ()) -> None:
        self._pool = pool
        self._redis = redis
        self._secrets = [secret for secret in secrets if len(secret) >= 8]
        self._routes = ClinicCache(redis, pool)
        self._connecting: OrderedDict[str, float] = OrderedDict()
        self._batcher: Batcher[_Stored, bool] = Batcher("webhook-inbox", _BATCH)

    async def store(self, hint: ConnectionHint, integration_id: UUID | None) -> Taken:
        """Keep a hint; None is what the global webhook knows of the integration.

        Raises what Postgres raises, and ``TimeoutError``.
        """
        if self._said_a_moment_ago(hint):
            return Taken.REPEATED
        await syncpoints.reach("wh.pre")
        async with asyncio.timeout(_DEADLINE):
            new = await self._batcher.send((hint, integration_id), self._insert)
        await syncpoints.reach("wh.post")
        if hint.state == "connecting":
            self._connecting[hint.instance_name] = time.monotonic()
            while len(self._connecting) > _KEPT:
                self._connecting.popitem(last=False)
        else:
            self._connecting.pop(hint.instance_name, None)
        return Taken.STORED if new else Taken.REPEATED

    async def keep_qr(self, hint: ConnectionHint, integration_id: UUID | None) -> None:
        """Put the QR code of a stored hint where people look for it, or note that there is none."""
        name = hint.instance_name
        try:
            async with asyncio.timeout(_QR_DEADLINE):
                if hint.code is not None:
                    at, owner = hint.at.isoformat(), str(integration_id or "-")
                    await routing_key.keep_qr(self._redis, name, owner, hint.code, at)
                    await self._redis.delete(routing_key.qr_limit_key(name))
                else:
                    await self._redis.set(routing_key.qr_limit_key(name), "", ex=routing_key.TTL)
                    await self._redis.delete(routing_key.qr_key(name))
        except (RedisError, TimeoutError) as trouble:
            _logger.warning("QR code not kept", instance=name, reason=reason(trouble))

    async def hand_on(self, message: Message, integration_id: UUID | None) -> Taken:
        """Append a message to ``wa:events``, with the clinic it belongs to.

        Raises ``RetryLater``, or what the servers raise.
        """
        name = message.instance_name
        async with asyncio.timeout(_DEADLINE):
            route = await self._routes.get(name)
            if route is None:
                if await self._pool.fetchval(_BEING_MADE, name):
                    raise RetryLater(f"the integration of {name} is still being made")
                return Taken.IGNORED
            if integration_id not in (None, route.integration_id):
                return Taken.IGNORED  # of an integration that had this name before
            if message.large:
                fields = await asyncio.to_thread(entry, message, route, self._secrets)
            else:
                fields = entry(message, route, self._secrets)
            new = await wa_events.publish(self._redis, message.digest, fields, _REMEMBER)
        return Taken.QUEUED if new else Taken.REPEATED

    async def _insert(self, batch: Sequence[_Stored]) -> list[bool]:
        """Commit a batch; whether each was not there yet."""
        hints = [hint for hint, _ in batch]
        rows = await self._pool.fetch(
            _STORE,
            [hint.digest for hint in hints],
            [id_ for _, id_ in batch],
            [hint.instance_name for hint in hints],
            [hint.event for hint in hints],
            [hint.state for hint in hints],
            [hint.reason for hint in hints],
            [hint.at for hint in hints],
            timeout=_DEADLINE,
        )
        new = {row["digest"] for row in rows}
        answers: list[bool] = []
        for hint in hints:
            answers.append(hint.digest in new)
            new.discard(hint.digest)  # the same twice in one batch is new once
        return answers

    def _said_a_moment_ago(self, hint: ConnectionHint) -> bool:
        at = self._connecting.get(hint.instance_name)
        recent = at is not None and time.monotonic() - at < _REPEATS_SECONDS
        return hint.state == "connecting" and recent


_STORE: Final = """
INSERT INTO evosaga.webhooks
    (digest, integration_id, instance_name, event, state, reason, told_at)
SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::int[],
                     $7::timestamp[])
ON CONFLICT (digest) DO NOTHING RETURNING digest
"""
_BEING_MADE: Final = """
SELECT true FROM evosaga.open_sagas
WHERE instance_name = $1 AND saga = 'create-integration' LIMIT 1
"""
