"""Processes stored webhooks: looks at Evolution and lets row, key and events follow.

One worker at a time does it. All hints about one integration are taken together. While Evolution
repeats itself, looks become rare; a hint that can matter at once is looked into at once.
Hints of a create that is under way are parked until its row is there, those of an integration
that is gone are let go.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import background, streams
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.leader_election import Candidacy
from evosaga.orchestrator import routing
from evosaga.orchestrator.engine.lease import LeaseLost
from evosaga.orchestrator.engine.transient_errors import is_transient
from evosaga.orchestrator.whatsapp.integrations.connection import (
    Integration,
    apply_observation,
    integrations,
    observe,
)
from evosaga.orchestrator.whatsapp.webhooks.payloads import QR, ConnectionHint, MergedHint, merge
from evosaga.orchestrator.whatsapp.webhooks.throttle import SELDOMEST, Throttle, again_in
from evosaga.sagas.whatsapp import integration_events
from evosaga.sagas.whatsapp.integration_events import Notice
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key

_logger = structlog.get_logger("evosaga.webhooks")
_TASK: Final = "evosaga:webhooks"
_BATCH: Final = 500
_POLL: Final = 0.5
_LOOKS: Final = 8
"""Looks at one server that are out at the same time; one that hangs holds up its own alone."""
_LOOK_SECONDS: Final = 20.0
_PARKED: Final = 0.5
_BUSY: Final = 0.1
_TIDY: Final = 60.0
_KEEP_HINTS: Final = 6 * 3600.0
"""Six hours; a delivery is repeated for twenty minutes, and until then it must be recognised."""
_KEEP_NOTICES: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A hint with its place in the inbox."""

    id: int
    integration_id: UUID | None
    hint: ConnectionHint
    tries: int


@dataclass(slots=True)
class InboxProcessor:
    """One candidate for the work; run one in every worker."""

    pool: Pool
    redis: Redis
    services: Services
    me: str
    _nudge: asyncio.Event = field(default_factory=asyncio.Event)
    _paces: dict[UUID, Throttle] = field(default_factory=dict)
    _looks: dict[UUID, asyncio.Task[None]] = field(default_factory=dict)
    _tidy_at: float = 0.0
    _places: dict[str, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(_LOOKS))
    )

    async def run(self) -> None:
        """Apply for ever; cancel it to stop. Outages are waited out."""
        leadership = Candidacy(self.pool, _TASK, self.me)
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(self._repeat(leadership, self.pump))
                parts.create_task(self._repeat(leadership, self.publish))
        finally:
            for task in self._looks.values():
                task.cancel()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(leadership.resign(), 2)

    async def _repeat(self, leadership: Candidacy, work: Callable[[], Awaitable[bool]]) -> None:
        async def turn() -> float:
            try:
                more = await leadership.held() and await work()
                return 0.0 if more else _POLL
            except (RedisError, *TRANSIENT) as trouble:
                _logger.warning("webhooks_retrying", reason=reason(trouble))
                return 1.0
            except Exception as stumble:  # a hint is never a reason to stop a worker
                tell = _logger.warning if is_transient(stumble) else _logger.error
                tell("webhooks_failed", error=type(stumble).__name__)
                return 5.0

        await background.repeat(turn, nudge=self._nudge)

    async def pump(self) -> bool:
        """Take what is due; True when there may be more."""
        await self._tidy()
        due = [_stored(row) for row in await self.pool.fetch(_DUE, _BATCH, SELDOMEST + 1)]
        if not due:
            return False
        ids = list({it.integration_id for it in due if it.integration_id})
        names = list({it.hint.instance_name for it in due if it.integration_id is None})
        # In this order: a create that is over by now has its row, or never will.
        making = await self.pool.fetch(_BEING_MADE, ids, names)
        found = await integrations(self.pool, ids=ids, names=names)
        by_id = {it.id: it for it in found}
        by_name = {it.instance_name: it for it in found}
        groups: dict[UUID, list[Stored]] = {}
        parked: list[Stored] = []
        gone: list[Stored] = []
        for stored in due:
            id_, name = stored.integration_id, stored.hint.instance_name
            integration = by_id.get(id_) if id_ else by_name.get(name)
            if integration is not None:
                groups.setdefault(integration.id, []).append(stored)
            elif any(id_ == row["saga_id"] or name == row["instance_name"] for row in making):
                parked.append(stored)
            else:
                gone.append(stored)
        await self._later(parked, _PARKED)
        await self._done(gone)
        for id_, group in groups.items():
            await self._take(by_id[id_], group)
        return len(due) == _BATCH

    async def _take(self, integration: Integration, group: Sequence[Stored]) -> None:
        """All that is due about one integration."""
        if integration.status == "deleting":
            await self._done(group)
            return
        codes = [it for it in group if it.hint.event == QR]
        if codes:
            told = [_qr_notice(integration, it.hint) for it in codes]
            async with self.pool.acquire() as connection, connection.transaction():
                await integration_events.record(connection, told)
                await connection.execute(_DONE, [it.id for it in codes])
        rest = [it for it in group if it.hint.event != QR]
        heard = reduce(merge, (it.hint for it in rest), MergedHint())
        if heard.state is None:
            await self._done(rest)
            return
        if integration.id in self._looks:
            await self._later(rest, _BUSY)
            return
        pace = self._paces.setdefault(integration.id, Throttle())
        again = any(it.tries for it in rest)
        if not again and (wait := pace.wait(heard, time.monotonic())) > 0:
            await self._later(rest, wait)
            return
        await self._later(rest, _LOOK_SECONDS + 10)  # should this worker die meanwhile
        task = asyncio.create_task(self._look(integration, rest, heard, pace))
        self._looks[integration.id] = task
        task.add_done_callback(lambda _: self._looks.pop(integration.id, None))

    async def _look(
        self, integration: Integration, group: Sequence[Stored], heard: MergedHint, pace: Throttle
    ) -> None:
        tries = max(it.tries for it in group)
        try:
            async with self._places[integration.server], asyncio.timeout(_LOOK_SECONDS):
                evolution = self.services.server(integration.server)
                seen = await observe(evolution, self.services.keys, integration)
                said = await apply_observation(self.pool, integration, seen)
            pace.at, pace.state = time.monotonic(), seen.state
            pace.idle = 0 if said == "changed" else pace.idle + 1
            if said == "changed":
                _logger.info(
                    "connection changed", instance=integration.instance_name, state=seen.state
                )
            wait = again_in(said, heard, seen, integration.channel, tries)
            if wait is None:
                await self._done(group)
            else:
                await self._later(group, wait, tried=True)
        except (LeaseLost, *TRANSIENT) as trouble:
            _logger.warning("observation_retrying", reason=reason(trouble))
        except Exception as stumble:  # the hints come again when their time is over
            tell = _logger.warning if is_transient(stumble) else _logger.error
            tell("observation_failed", error=type(stumble).__name__)
        finally:
            self._nudge.set()

    async def publish(self) -> bool:
        """Bring the routing keys up to date and publish the notices; True if there may be more."""
        recorded = await integration_events.unpublished(self.pool)
        if not recorded:
            return False
        changed = [it.notice for it in recorded if it.notice.type != "integration.qr_updated"]
        routes = await routing.routes(self.pool, {it.instance_name for it in changed})
        for route in routes.values():
            await routing_key.put(self.redis, route)
        connected = [it.instance_name for it in changed if it.type == "integration.connected"]
        # They must not be scanned any more. In a cluster each may be on another node.
        await asyncio.gather(*(self.redis.delete(routing_key.qr_key(name)) for name in connected))
        events = [integration_events.cloud_event(one) for one in recorded]
        await streams.publish_events(self.redis, events)
        await integration_events.note_published(self.pool, recorded)
        return len(recorded) == integration_events.BATCH

    async def _tidy(self) -> None:
        """Once a minute, drop what is not needed any more."""
        now = time.monotonic()
        if now < self._tidy_at:
            return
        self._tidy_at = now + _TIDY
        await self.pool.execute(_FORGET, _KEEP_HINTS)
        await integration_events.forget(self.pool, _KEEP_NOTICES)
        for id_ in [id_ for id_, pace in self._paces.items() if pace.at < now - 10 * SELDOMEST]:
            del self._paces[id_]

    async def _done(self, group: Iterable[Stored]) -> None:
        if ids := [it.id for it in group]:
            await self.pool.execute(_DONE, ids)

    async def _later(self, group: Iterable[Stored], wait: float, *, tried: bool = False) -> None:
        if ids := [it.id for it in group]:
            await self.pool.execute(_LATER, ids, wait, int(tried))


def _qr_notice(integration: Integration, hint: ConnectionHint) -> Notice:
    return Notice(
        integration.id,
        integration.organization_id,
        integration.instance_name,
        "integration.qr_updated",
        {"available": hint.state is None},
    )


def _stored(row: asyncpg.Record) -> Stored:
    hint = ConnectionHint(
        row["instance_name"], row["event"], row["told_at"], "", row["state"], row["reason"]
    )
    return Stored(row["id"], row["integration_id"], hint, row["tries"])


_DUE: Final = """
SELECT id, integration_id, instance_name, event, state, reason, told_at, tries
FROM evosaga.webhooks
WHERE applied_at IS NULL AND (due_at <= now() OR due_at > now() + make_interval(secs => $2))
ORDER BY due_at, id LIMIT $1
"""
_BEING_MADE: Final = """
SELECT saga_id, instance_name FROM evosaga.open_sagas
WHERE (saga_id = ANY($1) OR instance_name = ANY($2)) AND saga = 'create-integration'
"""
_DONE: Final = "UPDATE evosaga.webhooks SET applied_at = now() WHERE id = ANY($1)"
_LATER: Final = """
UPDATE evosaga.webhooks SET due_at = now() + make_interval(secs => $2), tries = tries + $3
WHERE id = ANY($1)
"""
_FORGET: Final = """
DELETE FROM evosaga.webhooks WHERE received_at < now() - make_interval(secs => $1)
"""
