"""What happens to an integration outside any saga: a phone is paired, a connection is lost.

Such a thing is no part of a saga's history: the saga that made the integration is long closed, and
a closed history must not grow. Nor is it worth a saga of its own: there is nothing to undo. So it
is a *notice*, written in the transaction that changes the row; the webhooks' processor publishes it
on ``evosaga:events``, in order for each integration, at least once. The table keeps what was
published for a while, as the story of the integration's connection.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool, Queryable

BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Notice:
    """``data`` is public: ids and codes, no phone number, no QR code, no name of a clinic."""

    integration_id: UUID
    organization_id: UUID
    instance_name: str
    type: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordedNotice:
    """A notice with its place; ``recorded_at`` is Postgres's time.

    ``epoch``: in which it is published; ids of notices that the log has forgotten are used again.
    """

    id: int
    recorded_at: datetime
    notice: Notice
    epoch: int = 0


async def record(connection: Queryable, notices: Sequence[Notice]) -> None:
    """Write notices, in order, in the caller's transaction; they are published once it commits."""
    await connection.execute(
        _RECORD,
        [notice.integration_id for notice in notices],
        [notice.organization_id for notice in notices],
        [notice.instance_name for notice in notices],
        [notice.type for notice in notices],
        [json.dumps(dict(notice.data), ensure_ascii=False) for notice in notices],
    )


async def unpublished(pool: Queryable) -> list[RecordedNotice]:
    """The oldest notices that nobody has heard of, at most ``BATCH`` of them.

    None while the log is known to have gone back (``evosaga.events.log_loss``).
    """
    return [_recorded(row) for row in await pool.fetch(_UNPUBLISHED, BATCH)]


async def story(pool: Queryable, integration_id: UUID, *, limit: int = 100) -> list[RecordedNotice]:
    """What is kept of one integration, newest first."""
    return [_recorded(row) for row in await pool.fetch(_STORY, integration_id, limit)]


async def note_published(pool: Queryable, recorded: Sequence[RecordedNotice]) -> None:
    """They are on the stream."""
    await pool.execute(_PUBLISHED, [one.id for one in recorded])


async def tell_again(pool: Queryable, since: datetime) -> None:
    """Publish once more what was recorded from then on, since Redis has lost it."""
    await pool.execute(_TELL_AGAIN, since)


async def forget(pool: Pool, older_than_seconds: float) -> None:
    """Drop what was published so long ago."""
    await pool.execute(_FORGET, older_than_seconds)


def cloud_event(recorded: RecordedNotice) -> bytes:
    """The notice as CloudEvents 1.0 JSON. Its subject is the integration, not a saga."""
    notice = recorded.notice
    told = {
        "integration_id": str(notice.integration_id),
        "organization_id": str(notice.organization_id),
        "instance_name": notice.instance_name,
    }
    body: dict[str, Any] = {
        "specversion": "1.0",
        "id": f"{notice.integration_id}:notice:{recorded.id}",
        "source": "/evosaga",
        "type": notice.type,
        "subject": str(notice.integration_id),
        "time": recorded.recorded_at.isoformat(),
        "datacontenttype": "application/json",
        # An integration's id is that of the saga which made it: the same story.
        "correlationid": str(notice.integration_id),
        "data": told | dict(notice.data),
    }
    if recorded.epoch:
        body["epoch"] = recorded.epoch
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _recorded(row: asyncpg.Record) -> RecordedNotice:
    notice = Notice(
        row["integration_id"],
        row["organization_id"],
        row["instance_name"],
        row["type"],
        json.loads(row["data"]),
    )
    return RecordedNotice(row["id"], row["recorded_at"], notice, row["epoch"])


_TELL_AGAIN: Final = "UPDATE evosaga.notices SET published_at = NULL WHERE recorded_at >= $1"
_RECORD: Final = """
INSERT INTO evosaga.notices (integration_id, organization_id, instance_name, type, data)
SELECT integration_id, organization_id, instance_name, type, data::jsonb
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY
    AS new (integration_id, organization_id, instance_name, type, data, place)
ORDER BY place
"""
_COLUMNS: Final = "id, integration_id, organization_id, instance_name, type, data, recorded_at"
# Ids are not in commit order, but a row is changed by one transaction at a time, so those of one
# integration are; and what commits late is found by what it lacks, not by a position.
_UNPUBLISHED: Final = f"""
SELECT {_COLUMNS}, coalesce(relay.epoch, 0) AS epoch
FROM evosaga.notices LEFT JOIN evosaga.relay ON stream = 'evosaga:events'
WHERE published_at IS NULL AND went_back_at IS NULL ORDER BY id LIMIT $1
"""  # noqa: S608  # constants only
_STORY: Final = f"""
SELECT {_COLUMNS}, 0 AS epoch FROM evosaga.notices
WHERE integration_id = $1 ORDER BY id DESC LIMIT $2
"""  # noqa: S608
_PUBLISHED: Final = """
UPDATE evosaga.notices SET published_at = now() WHERE id = ANY($1) AND published_at IS NULL
"""
_FORGET: Final = """
DELETE FROM evosaga.notices WHERE published_at < now() - make_interval(secs => $1)
"""
