"""How events read on the stream ``evosaga:events``: CloudEvents 1.0, without private fields.

Postgres takes the private fields off and writes the rest as JSON, so that a stretch of the log
goes from the one server to the other without being understood in between.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from events.database import Pool
from events.model import KINDS, Recorded, public_data

_PLACE: Final = ("saga_id", "sequence", "recorded_at", "correlation_id", "causation_id")
_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# While releases are mixed: what may leave the house of an event that only a newer one knows is
# unknown, so of such an event the envelope alone is told.
_KNOWN: Final = [kind.model_fields["type"].default for kind in KINDS]
_PRIVATE: Final = sorted(frozenset[str]().union(*(kind.PRIVATE for kind in KINDS)))


@dataclass(frozen=True, slots=True)
class Batch:
    """A stretch of the log as it goes on the streams; ``last`` is the position it ends at."""

    events: Sequence[bytes]
    commands: Sequence[bytes]
    last: int
    recorded_at: datetime
    """When the last of them was recorded."""


async def read_batch(pool: Pool, after: int, limit: int) -> Batch | None:
    """What is above a position, at most ``limit`` events; None when nothing is."""
    rows = await pool.fetch(_READ, after, limit, _KNOWN, _PRIVATE)
    if not rows:
        return None
    return Batch(
        [_told(row, row["type"], row["public"]) for row in rows],
        [_follow_up(row) for row in rows if row["follow_up"]],
        rows[-1]["position"],
        rows[-1]["recorded_at"],
    )


def cloud_event(saga: Mapping[str, Any], recorded: Recorded) -> bytes:
    """One event, exactly as the stream has it but for the order of keys.

    ``saga`` holds the saga's ``saga`` (its name), ``version`` and ``organization_id``.
    """
    organization = saga["organization_id"]
    known = {
        "saga": saga["saga"],
        "version": saga["version"],
        "organization_id": str(organization) if organization else None,
    }
    public = {k: v for k, v in known.items() if v is not None} | public_data(recorded.event)
    place = {name: getattr(recorded, name) for name in _PLACE}
    return _told(place, recorded.event.type, _json(public))


def _told(place: Mapping[str, Any] | asyncpg.Record, type_: str, public: str) -> bytes:
    """The envelope, around data that is JSON already."""
    subject = str(place["saga_id"])
    envelope = {
        "specversion": "1.0",
        "id": f"{subject}:{place['sequence']}",
        "source": "/evosaga",
        "type": type_,
        "subject": subject,
        "time": place["recorded_at"].isoformat(),
        "datacontenttype": "application/json",
        "correlationid": place["correlation_id"],
    }
    if place["causation_id"] is not None:
        envelope["causationid"] = place["causation_id"]
    return f'{_json(envelope)[:-1]},"data":{public}}}'.encode()


def _follow_up(row: asyncpg.Record) -> bytes:
    """The command that an event brings with it. Its id is the event's, so it starts one saga."""
    told = f"{row['saga_id']}:{row['sequence']}"
    command = {"id": told, **json.loads(row["follow_up"])}
    command |= {"correlationid": row["correlation_id"], "causationid": told}
    return _json(command).encode()


_READ: Final = """
SELECT e.position, e.saga_id, e.sequence, e.recorded_at, e.correlation_id, e.causation_id, e.type,
       (jsonb_strip_nulls(jsonb_build_object(
            'saga', s.saga, 'version', s.version, 'organization_id', s.organization_id))
        || CASE WHEN e.type = ANY($3) THEN e.data - $4::text[] ELSE '{}' END)::text AS public,
       CASE WHEN e.type = ANY($3) THEN e.data ->> 'follow_up' END AS follow_up
FROM evosaga.saga_events AS e JOIN evosaga.sagas AS s USING (saga_id)
WHERE e.position > $1 ORDER BY e.position LIMIT $2
"""
