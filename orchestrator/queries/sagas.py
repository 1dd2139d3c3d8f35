"""Reading: one saga, a page of sagas, a history. One indexed query each."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from pydantic import ValidationError

from evosaga.events.clock import LIVING
from evosaga.events.commands import literal_id, saga_id_of
from evosaga.events.database import Queryable
from evosaga.events.event_log import recorded_from
from evosaga.events.model import Recorded
from evosaga.events.statuses import ACTIVE_STATUSES, HELD, OPEN_STATUSES


class Unreadable(Exception):
    """A saga's history has an event that this release does not know; a newer one wrote it.

    Such a saga is set aside. Nobody's fault while releases are mixed, else the operator's.
    """


class BadCursor(Exception):
    """The page cursor was not made by this product; the caller must start from the beginning."""


@dataclass(frozen=True, slots=True)
class SagaView:
    """A saga's status, as everybody may see it."""

    saga_id: UUID
    saga: str
    version: int
    status: str
    business_key: str
    organization_id: UUID | None
    instance_name: str | None
    command_id: str
    step: str | None
    direction: str | None
    attempt: int | None
    code: str | None
    message: str | None
    existing_instance: str | None
    behind: UUID | None
    created_at: datetime
    updated_at: datetime
    next_at: datetime | None
    owner: str | None
    sequence: int
    held_claim: int | None = None
    holds: int | None = None
    scheduled_at: datetime | None = None
    """These three are about holds that no event tells of
    (``evosaga.orchestrator.engine.repeated_holds``)."""
    held: bool = False
    """Whether it waits for a dependency that is away, without using up an attempt."""

    @property
    def over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.status not in ("running", "compensating")


async def find_saga(
    pool: Queryable, reference: str, organization_id: UUID | None = None
) -> SagaView | None:
    """The saga of that id or command id, else the newest of the instance of that name.

    ``organization_id``: whoever asks sees that one's sagas alone, so nobody else's can be in the
    way. Without it a command id that came with an organization's key comes last, and of several
    the newest: it must not hide an instance.
    """
    ids = [literal_id(reference), saga_id_of(reference)]
    if organization_id is not None:
        ids.insert(1, saga_id_of(reference, organization_id))
    wanted = [id_ for id_ in ids if id_ is not None]
    row = await pool.fetchrow(
        f"{_SELECT} WHERE saga_id = ANY($1) AND ($2::uuid IS NULL OR organization_id = $2) "
        "ORDER BY array_position($1, saga_id) LIMIT 1",
        wanted,
        organization_id,
    )
    if row is not None:
        return _view(row)
    view = await newest_of_instance(pool, reference, organization_id)
    if view is None and organization_id is None:
        row = await pool.fetchrow(
            f"{_SELECT} WHERE command_id = $1 AND command_id <> saga_id::text "
            "ORDER BY created_at DESC, saga_id DESC LIMIT 1",
            reference,
        )
        return _view(row) if row else None
    return view


async def newest_of_instance(
    pool: Queryable, instance_name: str, organization_id: UUID | None = None
) -> SagaView | None:
    """The newest saga of an instance; one that was refused comes last: it never had to do with it.

    ``organization_id``: of that organization's.
    """
    row = await pool.fetchrow(
        f"{_SELECT} WHERE instance_name = $1 AND ($2::uuid IS NULL OR organization_id = $2) "
        "ORDER BY status = 'rejected', created_at DESC, saga_id DESC LIMIT 1",
        instance_name,
        organization_id,
    )
    return _view(row) if row else None


async def sagas_by_part(
    pool: Queryable, part: str, organization_id: UUID | None = None, *, limit: int = 20
) -> list[SagaView]:
    """Sagas whose id begins or ends so, or whose command's id begins so; newest first."""
    text = part.strip().lower()
    digits = text.replace("-", "")
    hexadecimal = len(digits) >= _LEAST and re.fullmatch(r"[0-9a-f]{1,32}", digits) is not None
    low, high = (
        (UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))) if hexadecimal else (None, None)
    )
    rows = await pool.fetch(
        f"{_SELECT} WHERE saga_id IN ("  # noqa: S608  # constants only
        "(SELECT saga_id FROM evosaga.sagas WHERE saga_id BETWEEN $1 AND $2"
        " AND ($3::uuid IS NULL OR organization_id = $3) ORDER BY saga_id DESC LIMIT $6) UNION ALL "
        "(SELECT saga_id FROM evosaga.sagas WHERE reverse(saga_id::text) LIKE $4"
        " AND ($3::uuid IS NULL OR organization_id = $3) LIMIT $6) UNION ALL "
        "(SELECT saga_id FROM evosaga.sagas WHERE command_id LIKE $5"
        " AND command_id <> saga_id::text"
        " AND ($3::uuid IS NULL OR organization_id = $3) LIMIT $6)) "
        "ORDER BY created_at DESC, saga_id DESC LIMIT $6",
        *(low, high, organization_id),
        f"{text[::-1]}%" if hexadecimal else None,
        f"{_literal(part.strip())}%" if len(part.strip()) >= _LEAST else None,
        limit,
    )
    return [_view(row) for row in rows]


async def sagas_of(
    pool: Queryable, ids: Sequence[UUID], organization_id: UUID | None = None, *, limit: int = 20
) -> list[SagaView]:
    """Of these the parked ones, then the other open ones, then the newest."""
    rows = await pool.fetch(
        f"{_SELECT} WHERE saga_id = ANY($1) AND ($2::uuid IS NULL OR organization_id = $2) "
        f"ORDER BY status = 'failed' DESC, {OPEN_STATUSES} DESC, created_at DESC, saga_id DESC "
        "LIMIT $3",
        *(ids, organization_id, limit),
    )
    return [_view(row) for row in rows]


def _literal(text: str) -> str:
    """For LIKE: each character stands for itself."""
    return re.sub(r"([\\%_])", r"\\\1", text)


_LEAST: Final = 4
"""Characters of an id below which it is not looked for by a part."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a page of sagas is narrowed to; None means all. The status may be ``held``."""

    status: str | None = None
    saga: str | None = None
    organization_id: UUID | None = None
    instance_name: str | None = None
    since: datetime | None = None
    code: str | None = None


async def list_sagas(
    pool: Queryable, wanted: Filter, *, limit: int = 50, cursor: str | None = None
) -> tuple[list[SagaView], str | None]:
    """A page, newest first, and the cursor of the next one. Raises ``BadCursor``."""
    conditions: list[str] = []
    values: list[Any] = []

    def need(condition: str, value: Any) -> None:
        values.append(value)
        conditions.append(condition.format(f"${len(values)}"))

    for column in ("status", "saga", "organization_id", "instance_name", "code"):
        if column == "status" and wanted.status == HELD:
            conditions.append(_HELD)
        elif (value := getattr(wanted, column)) is not None:
            need(f"{column} = {{}}", value)
    if wanted.since is not None:
        need("created_at >= {}", wanted.since)
    if cursor is not None:
        at, saga_id = read_cursor(cursor)
        values += [at, saga_id]
        conditions.append(f"(created_at, saga_id) < (${len(values) - 1}, ${len(values)})")
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    values.append(limit + 1)
    rows = await pool.fetch(
        f"{_SELECT} {where} ORDER BY created_at DESC, saga_id DESC LIMIT ${len(values)}", *values
    )
    page = [_view(row) for row in rows[:limit]]
    last = page[-1] if len(rows) > limit else None
    return page, cursor_after(last.created_at, last.saga_id) if last else None


async def history(pool: Queryable, saga_id: UUID, after: int = -1) -> list[Recorded]:
    """A saga's events above sequence ``after``, in order. Raises ``Unreadable``."""
    rows = await pool.fetch(
        "SELECT saga_id, sequence, recorded_at, correlation_id, causation_id, type, data "
        "FROM evosaga.saga_events WHERE saga_id = $1 AND sequence > $2 ORDER BY sequence",
        saga_id,
        after,
    )
    try:
        return [recorded_from(row) for row in rows]
    except ValidationError as error:
        said = error.errors(include_input=False, include_url=False)[0]["msg"]
        raise Unreadable(
            f"saga {saga_id} has an event this release does not know: {said}"
        ) from None


async def under_way(pool: Queryable, ids: Sequence[UUID]) -> int:
    """How many of these are neither over nor parked."""
    count: int = await pool.fetchval(
        "SELECT count(*) FROM evosaga.open_sagas WHERE saga_id = ANY($1) AND status <> 'failed'",
        list(ids),
    )
    return count


async def living_workers(pool: Queryable) -> int:
    """How many workers show a sign of life."""
    count: int = await pool.fetchval(
        f"SELECT count(*) FROM evosaga.workers WHERE {LIVING}"  # noqa: S608  # constants only
    )
    return count


def _view(row: asyncpg.Record | Mapping[str, Any]) -> SagaView:
    return SagaView(**dict(row))


def cursor_after(at: datetime, id_: UUID) -> str:
    """The cursor of the page that goes on below this time and id."""
    text = json.dumps([at.isoformat(), str(id_)])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Where a page goes on. Raises ``BadCursor``."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        at, saga_id = json.loads(text)
        # In UTC, since at either end of the calendar not every zone has a day left.
        return datetime.fromisoformat(at).astimezone(UTC), UUID(saga_id)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadCursor("that cursor is not one of ours; leave it out to start anew") from error


# The event says whether the last attempt was held, the row does not; only waiting sagas are read.
_HELD: Final = f"""({ACTIVE_STATUSES} AND next_at IS NOT NULL AND code IS NOT NULL
    AND (held_claim IS NOT NULL OR EXISTS (
        SELECT FROM evosaga.saga_events AS last
        WHERE last.saga_id = sagas.saga_id AND last.sequence = next_sequence - 1
          AND last.type IN ('step.failed', 'compensation.failed')
          AND last.data ->> 'outcome' = 'held')))"""
_SELECT: Final = f"""
SELECT saga_id, saga, version, status, business_key, organization_id, instance_name, command_id,
       step, direction, attempt, code, message, existing_instance, behind, created_at,
       updated_at, next_at, owner, next_sequence AS sequence, held_claim, holds, scheduled_at,
       {_HELD} AS held
FROM evosaga.sagas
"""  # noqa: S608  # constants only
