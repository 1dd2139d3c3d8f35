"""How events read on the stream ``evosaga:events``: CloudEvents 1.0, without private fields.

Postgres takes the private fields off and writes the rest as JSON, so that a stretch of the log
goes from the one server to the other without being understood in between.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool
from evosaga.events.model import KINDS, Recorded, public_data

_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_word: Final = functools.lru_cache(maxsize=256)(_json)
"""The same for what is said again and again: types and names of sagas."""

# While releases are mixed: what may leave the house of an event that only a newer one knows is
# unknown, so of such an event the envelope alone is told.
_KNOWN: Final = [kind.model_fields["type"].default for kind in KINDS]
_PRIVATE: Final = sorted(frozenset[str]().union(*(kind.PRIVATE for kind in KINDS)))
_NAMING: Final = frozenset(
    kind.model_fields["type"].default for kind in KINDS if "saga" in kind.model_fields
)
"""Kinds that name their saga themselves; the others are told with its name in front."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A stretch of the log as it goes on the streams; ``last`` is the position it ends at."""

    events: Sequence[bytes]
    commands: Sequence[bytes]
    last: int


async def read_batch(pool: Pool, after: int, limit: int) -> Batch | None:
    """What is above a position, at most ``limit`` events; None when nothing is."""
    rows = await pool.fetch(_READ, after, limit, _KNOWN, _PRIVATE)
    if not rows:
        return None
    return Batch(
        [_told(row, row, row["type"], row["public"]) for row in rows],
        [_follow_up(row) for row in rows if row["follow_up"]],
        rows[-1]["position"],
    )


def cloud_event(saga: Mapping[str, Any], recorded: Recorded) -> bytes:
    """One event, exactly as the stream has it but for the order of keys.

    ``saga`` holds the saga's ``saga`` (its name), ``version`` and ``organization_id``.
    """
    place = {name: getattr(recorded, name) for name in Recorded.model_fields}
    at = recorded.recorded_at.astimezone(UTC)
    place["time"] = at.isoformat(timespec="microseconds")
    return _told(place, saga, recorded.event.type, _json(public_data(recorded.event)))


_Columns = Mapping[str, Any] | asyncpg.Record


def _told(place: _Columns, saga: _Columns, type_: str, public: str) -> bytes:
    """The envelope, around data that is JSON already."""
    subject = str(place["saga_id"])
    correlation, causation = place["correlation_id"], place["causation_id"]
    if type_ not in _NAMING:
        public = _named(saga["saga"], saga["version"], saga["organization_id"], public)
    # Most stories have one saga, and its id is that of the command.
    story = f'"{subject}"' if correlation == subject else _json(correlation)
    caused = ""
    if causation is not None:
        caused = f',"causationid":{story if causation == correlation else _json(causation)}'
    return (
        f'{{"specversion":"1.0","id":"{subject}:{place["sequence"]}","source":"/evosaga",'
        f'"type":{_word(type_)},"subject":"{subject}","time":"{place["time"]}",'
        '"datacontenttype":"application/json",'
        f'"correlationid":{story}{caused},"data":{public}}}'
    ).encode()


def _named(saga: str, version: int, organization_id: UUID | None, public: str) -> str:
    """The data with the saga's name, version and organization in front."""
    whose = "" if organization_id is None else f',"organization_id":"{organization_id}"'
    rest = "" if public == "{}" else f",{public[1:-1]}"
    return f'{{"saga":{_word(saga)},"version":{version}{whose}{rest}}}'


def _follow_up(row: asyncpg.Record) -> bytes:
    """The command that an event brings with it. Its id is the event's, so it starts one saga."""
    told = f"{row['saga_id']}:{row['sequence']}"
    command = {"id": told, **json.loads(row["follow_up"])}
    command |= {"correlationid": row["correlation_id"], "causationid": told}
    return _json(command).encode()


_READ: Final = """
SELECT e.position, e.saga_id, e.sequence, e.correlation_id, e.causation_id, e.type,
       s.saga, s.version, s.organization_id,
       to_char(e.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS time,
       CASE WHEN e.type <> ALL($3) THEN '{}'
            WHEN e.data ?| $4::text[] THEN (e.data - $4::text[])::text
            ELSE e.data::text END AS public,
       CASE WHEN e.type = ANY($3) THEN e.data ->> 'follow_up' END AS follow_up
FROM evosaga.saga_events AS e JOIN evosaga.sagas AS s USING (saga_id)
WHERE e.position > $1 ORDER BY e.position LIMIT $2
"""
