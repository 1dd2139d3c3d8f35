"""Reading large tables without holding up the event loop: page by page, each built in a thread.

A page is a query of its own, so no transaction stays open, and no number of rows runs into the
time that one statement may take.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg

from evosaga.events.database import Pool

_PAGE: Final = 2000
_T = TypeVar("_T")


async def pages(
    pool: Pool,
    query: str,
    key: str,
    build: Callable[[Sequence[asyncpg.Record]], list[_T]],
) -> list[_T]:
    """Everything that ``query`` finds above a ``key`` ($1, null at first), at most $2 a time, in
    the order of that key."""
    found: list[_T] = []
    after: Any = None
    while True:
        page = await pool.fetch(query, after, _PAGE)
        found += await asyncio.to_thread(build, page)
        if len(page) < _PAGE:
            return found
        after = page[-1][key]
