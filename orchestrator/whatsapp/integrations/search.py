"""Pages of integrations: searched, filtered, counted, sorted, in both directions.

What narrows a lot (a search, a status, the need of attention) is collected first, then sorted; the
rest is read in the order of an index. Left to itself the planner reads all of a table in order,
since it can't know how rare the beginning of a word is.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args
from uuid import UUID

import asyncpg

from evosaga.events.database import Queryable
from evosaga.migrations.search_indexes import AGE, INTEGRATION_WORDS, TITLE
from evosaga.orchestrator.queries.sagas import BadCursor, read_cursor
from evosaga.orchestrator.whatsapp.integrations import words
from evosaga.orchestrator.whatsapp.integrations.in_need import IN_USE, MAYBE, NEEDS
from evosaga.orchestrator.whatsapp.integrations.queries import SELECT_VIEW, IntegrationView

COUNTED: Final = 1_000
"""The most that are counted: beyond, there are more than so many."""
Sort = Literal["newest", "oldest", "name", "-name"]
SORTS: Final[tuple[Sort, ...]] = get_args(Sort)
STATUSES: Final = ("pending", "connected", "disconnected", "deleting")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list is narrowed to; None means all. ``attention``: only what needs it."""

    search: str | None = None
    status: str | None = None
    organization_id: UUID | None = None
    server: str | None = None
    attention: bool = False
    sort: Sort = "newest"


@dataclass(frozen=True, slots=True)
class IntegrationList:
    """A page of the list. ``older`` and ``newer`` are cursors of the pages after and before it."""

    integrations: Sequence[IntegrationView]
    count: int
    """Of all pages; at most ``COUNTED``."""
    more: bool
    """There are more than were counted."""
    older: str | None
    newer: str | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a page begins: behind this key and id, or before them when going back."""

    back: bool
    key: datetime | str
    id: UUID


class _Query:
    """Conditions and their values, numbered as they come."""

    def __init__(self) -> None:
        self.conditions = ["row.type = 'whatsapp'", "row.provider = 'evolution'"]
        self.values: list[Any] = []

    def value(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    @property
    def where(self) -> str:
        return " AND ".join(self.conditions)


async def list_integrations(
    pool: Queryable, wanted: Wanted, *, limit: int = 50, cursor: str | None = None
) -> IntegrationList:
    """A page and the count of all. Raises ``BadCursor``."""
    place = _read_place(cursor, wanted.sort) if cursor else None
    needy = wanted.attention and not wanted.search
    query = _narrowed(wanted, "true" if needy else NEEDS)
    if query is None:
        return IntegrationList([], 0, False, None, None)
    collected = bool(wanted.search or wanted.status or wanted.attention)
    if collected:
        hits = _hits(query, wanted.sort, needy)
        rows = await pool.fetch(*_collected(hits, query, wanted.sort, place, limit + 1))
        count: int = rows[0]["count"] if rows else await _count(pool, hits, query)
    else:
        rows, count = [], COUNTED + 1
    if count > COUNTED:  # so many that the page is found soon when they are read in order
        query = _narrowed(wanted, NEEDS) or query
        rows = await pool.fetch(*_in_order(query, wanted.sort, place, limit + 1))
    if not collected:
        some = f"SELECT FROM {_ROWS} WHERE {query.where} LIMIT {COUNTED + 1}"
        count = await _count(pool, some, query)
    page, older, newer = _page(rows, wanted.sort, place, limit)
    return IntegrationList(page, min(count, COUNTED), count > COUNTED, older, newer)


def _narrowed(wanted: Wanted, needs: str) -> _Query | None:
    """What is looked for; None when nothing can fit, since what was typed is too short.

    ``needs``: the condition that stands for the need of attention.
    """
    query = _Query()
    if wanted.search is not None and words.tidy(wanted.search):
        found = words.query(wanted.search)
        if found is None:
            return None
        query.conditions.append(f"({INTEGRATION_WORDS}) @@ {query.value(found)}::text::tsquery")
    if wanted.status == "pending":
        query.conditions.append("(row.status::text = 'pending' OR row.status IS NULL)")
    elif wanted.status is not None:
        query.conditions.append(f"row.status::text = {query.value(wanted.status)}")
    if wanted.organization_id is not None:
        query.conditions.append(f"row.organization_id = {query.value(wanted.organization_id)}")
    if wanted.server is not None:
        server = query.value(wanted.server)
        query.conditions.append(f"coalesce(row.config ->> 'server', 'default') = {server}")
    if wanted.attention:
        query.conditions.append(needs)
    return query


async def _count(pool: Queryable, found: str, query: _Query) -> int:
    counted: int = await pool.fetchval(f"SELECT count(*) FROM ({found}) AS n", *query.values)  # noqa: S608
    return counted


def _hits(query: _Query, sort: Sort, needy: bool) -> str:
    """All that fits, in no order, but one more than are counted at most.

    ``needy``: begins with what may need attention, and looks at those rows alone.
    """
    hits = f"SELECT row.id, {_ORDERS[sort][0]} AS sort_key FROM {_ROWS} WHERE {query.where}"  # noqa: S608
    if needy:
        one = f"{hits} AND row.id = maybe.id AND (maybe.certain OR {IN_USE}) LIMIT 1"
        hits = f"SELECT hit.* FROM ({MAYBE}) AS maybe CROSS JOIN LATERAL ({one}) AS hit"  # noqa: S608
    return f"{hits} LIMIT {COUNTED + 1}"


def _collected(hits: str, query: _Query, sort: Sort, place: _Place | None, limit: int) -> list[Any]:
    """The query that sorts what was collected, and its values. Where there are too many to count,
    what is behind a place may be among those that were left out.
    """
    way, beyond, values = _behind(query, sort, place)
    narrowed = f"WHERE (sort_key, id) {beyond}" if beyond else ""
    page = (
        f"WITH hits AS MATERIALIZED ({hits}) "  # noqa: S608
        f"SELECT *, (SELECT count(*) FROM hits) AS count FROM hits {narrowed} "
        f"ORDER BY sort_key {way}, id {way} LIMIT ${len(values) + 1}"
    )
    return [_viewed(page, way, ", page.sort_key, page.count"), *values, limit]


def _in_order(query: _Query, sort: Sort, place: _Place | None, limit: int) -> list[Any]:
    """The query that reads in the order of an index, and its values."""
    way, beyond, values = _behind(query, sort, place)
    key = _ORDERS[sort][0]
    narrowed = f"AND ({key}, row.id) {beyond}" if beyond else ""
    page = (
        f"SELECT row.id, {key} AS sort_key FROM {_ROWS} WHERE {query.where} {narrowed} "  # noqa: S608
        f"ORDER BY {key} {way}, row.id {way} LIMIT ${len(values) + 1}"
    )
    return [_viewed(page, way, ", page.sort_key"), *values, limit]


def _behind(query: _Query, sort: Sort, place: _Place | None) -> tuple[str, str, list[Any]]:
    """The way of sorting, what is behind the place in it, and the values so far."""
    down = _ORDERS[sort][1] != (place is not None and place.back)
    way, sign = ("DESC", "<") if down else ("ASC", ">")
    values = [*query.values]
    if place is None:
        return way, "", values
    values += [place.key, place.id]
    kind = "text" if isinstance(place.key, str) else "timestamptz"
    return way, f"{sign} (${len(values) - 1}::{kind}, ${len(values)}::uuid)", values


def _viewed(page: str, way: str, columns: str) -> str:
    return (
        f"WITH page AS MATERIALIZED ({page}) {SELECT_VIEW.format(columns)} "
        f"JOIN page ON page.id = row.id ORDER BY page.sort_key {way}, row.id {way}"
    )


def _page(
    rows: Sequence[asyncpg.Record], sort: Sort, place: _Place | None, limit: int
) -> tuple[list[IntegrationView], str | None, str | None]:
    """The page, and the cursors of the pages after and before it."""
    backwards = place is not None and place.back
    shown = list(rows[:limit])
    beyond = len(rows) > limit
    if backwards:
        shown.reverse()
    if not shown:
        return [], None, None
    older = beyond or backwards
    newer = beyond if backwards else place is not None
    return (
        [_view(row) for row in shown],
        _cursor(sort, shown[-1], back=False) if older else None,
        _cursor(sort, shown[0], back=True) if newer else None,
    )


def _view(row: asyncpg.Record) -> IntegrationView:
    return IntegrationView(**{name: of for name, of in row.items() if name not in _OURS})


def _cursor(sort: Sort, row: asyncpg.Record, *, back: bool) -> str:
    key = row["sort_key"]
    told = key.isoformat() if isinstance(key, datetime) else key
    text = json.dumps([sort, back, told, str(row["id"])])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_place(cursor: str, sort: Sort) -> _Place:
    """Where the page begins. One of a release before this has a time and an id alone."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        match json.loads(text):
            case [str(of), bool(back), str(key), str(id_)] if of == sort and "\0" not in key:
                key.encode()  # a ValueError for half a surrogate pair; Postgres takes neither
                at = key if "name" in sort else datetime.fromisoformat(key).astimezone(UTC)
                return _Place(back, at, UUID(id_))
            case [str(), str()] if sort == "newest":
                return _Place(False, *read_cursor(cursor))
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise BadCursor("that cursor is not one of this list; leave it out to start anew")


# All values are parameters; what is put together here are conditions of this file.
_OURS: Final = ("sort_key", "count")
_ROWS: Final = "healthcare.integrations AS row"
_ORDERS: Final[dict[Sort, tuple[str, bool]]] = {
    "newest": (AGE, True),
    "oldest": (AGE, False),
    "name": (TITLE, False),
    "-name": (TITLE, True),
}
"""The expression that is sorted by, and whether from the top down."""
