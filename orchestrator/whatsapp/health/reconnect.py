"""Reconnecting: Evolution is asked to connect the instances that are due, a few at a time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

import structlog

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.health import store
from evosaga.orchestrator.whatsapp.health.connection_state import Record, after_reconnect
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.services import Services

_logger = structlog.get_logger("evosaga.health")
_RECONNECTS: Final = 25
"""On one server, a round."""
_AT_ONCE: Final = 4

_Due: TypeAlias = tuple[Row, Record]


async def reconnect(
    pool: Pool,
    services: Services,
    due: Sequence[_Due],
    tokens: Mapping[str, str],
    now: datetime,
    may_go_on: Callable[[], bool],
) -> int:
    """Ask Evolution to connect those that are due, by the tokens of their names; how many were."""
    groups: dict[str, list[_Due]] = {}
    for row, record in sorted(due, key=lambda one: str(one[1].next_reconnect_at)):
        groups.setdefault(row.server, []).append((row, record))
    sent = await asyncio.gather(
        *(
            _reconnect_on(services.server(server), pool, group, tokens, now, may_go_on)
            for server, group in groups.items()
        )
    )
    return sum(sent)


async def _reconnect_on(
    evolution: EvolutionApi,
    pool: Pool,
    due: Sequence[_Due],
    tokens: Mapping[str, str],
    now: datetime,
    may_go_on: Callable[[], bool],
) -> int:
    """A few at a time, and no more of them once the server does not answer."""
    limit, sent, stop = asyncio.Semaphore(_AT_ONCE), 0, asyncio.Event()

    async def one(row: Row, record: Record) -> None:
        nonlocal sent
        async with limit:
            if stop.is_set() or not may_go_on() or not await store.still_free(pool, row):
                return
            token = tokens.get(row.instance_name)
            if not token:
                return
            tried = after_reconnect(row.id, record, now)
            if not await store.claim_try(pool, row.id, record, tried):
                return
            answer = await evolution.connect(row.instance_name, token, None)
            if not answer.tried or answer.code or answer.status == 0 or answer.status >= 500:
                stop.set()
            if not answer.sent:
                await store.give_back_try(pool, row.id, record, tried)
                return
            sent += 1
            _logger.info(
                "reconnecting",
                instance=row.instance_name,
                tries=record.reconnects + 1,
                answer=answer.text,
            )

    await asyncio.gather(*(one(row, record) for row, record in due[:_RECONNECTS]))
    return sent
