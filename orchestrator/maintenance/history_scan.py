"""Going through many histories with little memory: a batch of sagas at a time, by their ids."""

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError

from evosaga.events.database import Connection, Pool
from evosaga.events.event_log import recorded_from
from evosaga.events.model import Recorded

_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class ScannedHistory:
    """A saga's history; ``unreadable`` says why this release can't read it."""

    saga_id: UUID
    history: tuple[Recorded, ...] = ()
    unreadable: str | None = None


async def batches(
    pool: Pool, ids: str, columns: str | None = None
) -> AsyncIterator[tuple[list[ScannedHistory], dict[UUID, Any]]]:
    """All histories whose id the query ``ids`` gives, and the ``columns`` of their status rows.

    ``ids`` takes the smallest id that is wanted as $1 and a limit as $2. Both halves of a batch
    are from one snapshot, so a saga that goes on meanwhile contradicts nothing.
    """
    smallest = 0
    while smallest < 2**128:
        async with (
            pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            keys = await connection.fetch(ids, UUID(int=smallest), _BATCH)
            found = [key["saga_id"] for key in keys]
            told = await read(connection, found)
            rows = await _rows(connection, found, columns) if columns else {}
        if not found:
            return
        yield told, rows
        smallest = found[-1].int + 1


async def read(connection: Connection, saga_ids: Sequence[UUID]) -> list[ScannedHistory]:
    """The histories of these sagas, in the order of the ids."""
    events = await connection.fetch(_EVENTS, saga_ids)
    told = {
        saga_id: _told(saga_id, list(rows))
        for saga_id, rows in itertools.groupby(events, lambda row: row["saga_id"])
    }
    return [told.get(saga_id, ScannedHistory(saga_id)) for saga_id in saga_ids]


def _told(saga_id: UUID, rows: Sequence[Any]) -> ScannedHistory:
    try:
        return ScannedHistory(saga_id, tuple(recorded_from(row) for row in rows))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        return ScannedHistory(
            saga_id, unreadable=f"an event it does not know: {first['msg']}"[:200]
        )


async def _rows(connection: Connection, saga_ids: Sequence[UUID], columns: str) -> dict[UUID, Any]:
    query = f"SELECT {columns} FROM evosaga.sagas WHERE saga_id = ANY($1)"  # noqa: S608  # constants
    return {row["saga_id"]: row for row in await connection.fetch(query, saga_ids)}


_EVENTS: Final = """
SELECT saga_id, sequence, recorded_at, correlation_id, causation_id, type, data
FROM evosaga.saga_events WHERE saga_id = ANY($1) ORDER BY saga_id, sequence
"""
