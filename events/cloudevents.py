"""Events as on the stream ``evosaga:events``: CloudEvents 1.0, without private fields.

Postgres removes the private fields and writes the rest as JSON, so events are copied as JSON text,
without parsing them.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from evosaga.events import trace_context
from evosaga.events.database import Pool
from evosaga.events.model import KINDS, Recorded, public_data

_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_word: Final = functools.lru_cache(maxsize=256)(_json)
"""The same, cached, for strings that repeat: types and names of sagas."""

# While releases are mixed: the private fields of an event that only a newer release knows are
# unknown, so such an event is published without its data.
_KNOWN: Final = [kind.model_fields["type"].default for kind in KINDS]
_PRIVATE: Final = sorted(frozenset[str]().union(*(kind.PRIVATE for kind in KINDS)))
_NAMING: Final = frozenset(
    kind.model_fields["type"].default for kind in KINDS if "saga" in kind.model_fields
)
"""Kinds whose data names the saga; for the others the name is added in front."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events as published; ``last`` is the position of the last one, ``newest`` that event."""

    events: Sequence[bytes]
    commands: Sequence[bytes]
    last: int
    newest: tuple[UUID, int, datetime]
    """Its saga, its sequence, and when it was recorded."""


async def read_batch(
    pool: Pool, after: int, up_to: int, limit: int, *, traced: bool = False, epoch: int = 0
) -> Batch | None:
    """At most ``limit`` events above a position and up to another; None when there are none.

    ``traced``: with the ``traceparent`` of their saga, for which its beginning is read as well.
    ``epoch``: in which they are published; the first, 0, is not named.
    """
    query = _READ_TRACED if traced else _READ
    rows = await pool.fetch(query, after, limit, _KNOWN, _PRIVATE, up_to)
    if not rows:
        return None
    begun, last = epoch_attribute(epoch), rows[-1]
    return Batch(
        [
            _told(row, row, row["type"], row["public"], (_trace(row) if traced else "") + begun)
            for row in rows
        ],
        [_follow_up(row) for row in rows if row["follow_up"]],
        last["position"],
        (last["saga_id"], last["sequence"], last["recorded_at"]),
    )


def epoch_attribute(epoch: int) -> str:
    """The extension attribute ``epoch`` as JSON behind another attribute; empty for the first."""
    return f',"epoch":{epoch}' if epoch else ""


def cloud_event(saga: Mapping[str, Any], recorded: Recorded) -> bytes:
    """One event as on the stream, except for the order of keys.

    ``saga`` holds the saga's ``saga`` (its name), ``version`` and ``organization_id``.
    """
    place = {name: getattr(recorded, name) for name in Recorded.model_fields}
    at = recorded.recorded_at.astimezone(UTC)
    place["time"] = at.isoformat(timespec="microseconds")
    return _told(place, saga, recorded.event.type, _json(public_data(recorded.event)))


_Columns = Mapping[str, Any] | asyncpg.Record


def _trace(row: asyncpg.Record) -> str:
    """The attribute of CloudEvents' extension for tracing."""
    place = trace_context.of_saga(row["saga_id"], trace_context.valid(row["traceparent"]))
    return f',"traceparent":"{place}"'


def _told(place: _Columns, saga: _Columns, type_: str, public: str, more: str = "") -> bytes:
    """The CloudEvents envelope around data that is JSON text. ``more``: further attributes."""
    subject = str(place["saga_id"])
    correlation, causation = place["correlation_id"], place["causation_id"]
    if type_ not in _NAMING:
        public = _named(saga["saga"], saga["version"], saga["organization_id"], public)
    # Usually the correlation id is the saga's id.
    story = f'"{subject}"' if correlation == subject else _json(correlation)
    caused = ""
    if causation is not None:
        caused = f',"causationid":{story if causation == correlation else _json(causation)}'
    return (
        f'{{"specversion":"1.0","id":"{subject}:{place["sequence"]}","source":"/evosaga",'
        f'"type":{_word(type_)},"subject":"{subject}","time":"{place["time"]}",'
        '"datacontenttype":"application/json",'
        f'"correlationid":{story}{caused}{more},"data":{public}}}'
    ).encode()


def _named(saga: str, version: int, organization_id: UUID | None, public: str) -> str:
    """The data with the saga's name, version and organization in front."""
    whose = "" if organization_id is None else f',"organization_id":"{organization_id}"'
    rest = "" if public == "{}" else f",{public[1:-1]}"
    return f'{{"saga":{_word(saga)},"version":{version}{whose}{rest}}}'


def _follow_up(row: asyncpg.Record) -> bytes:
    """The follow-up command of an event. Its id is the event's, so it starts one saga only."""
    told = f"{row['saga_id']}:{row['sequence']}"
    command = {"id": told, **json.loads(row["follow_up"])}
    command |= {"correlationid": row["correlation_id"], "causationid": told}
    return _json(command).encode()


_READ: Final = """
SELECT e.position, e.saga_id, e.sequence, e.recorded_at, e.correlation_id, e.causation_id, e.type,
       s.saga, s.version, s.organization_id,
       to_char(e.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS time,
       CASE WHEN e.type <> ALL($3) THEN '{}'
            WHEN e.data ?| $4::text[] THEN (e.data - $4::text[])::text
            ELSE e.data::text END AS public,
       CASE WHEN e.type = ANY($3) THEN e.data ->> 'follow_up' END AS follow_up
FROM evosaga.saga_events AS e JOIN evosaga.sagas AS s USING (saga_id)
WHERE e.position > $1 AND e.position <= $5 ORDER BY e.position LIMIT $2
"""
_READ_TRACED: Final = _READ.replace(
    "SELECT e.position,", "SELECT born.facts ->> 'traceparent' AS traceparent, e.position,"
).replace(
    "USING (saga_id)", "USING (saga_id) LEFT JOIN evosaga.saga_starts AS born USING (saga_id)"
)
