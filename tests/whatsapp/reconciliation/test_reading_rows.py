"""Rows and records are read page by page, and built beside the event loop."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.health import store
from evosaga.orchestrator.whatsapp.integrations import paging
from evosaga.orchestrator.whatsapp.integrations import rows as rows_module
from evosaga.orchestrator.whatsapp.integrations.paging import pages
from evosaga.orchestrator.whatsapp.integrations.rows import rows_of, rows_on
from tests.whatsapp.reconciliation.conftest import Rows


@pytest.mark.parametrize("number", [0, 3, 4, 7])
async def test_every_row_is_read_once_and_the_newest_come_first(
    pool: Pool, rows: Rows, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(paging, "_PAGE", 2)
    monkeypatch.setattr(rows_module, "_SOME", 2)
    for n in range(number):
        await rows.insert(f"clinic-{n}")
    await pool.execute(
        "INSERT INTO evosaga.connections (integration_id, state) "
        "SELECT id, 'connected' FROM healthcare.integrations"
    )
    assert [row.instance_name for row in await rows_of(pool)] == [
        f"clinic-{n}" for n in reversed(range(number))
    ]
    ids = [row.id async for page in rows_on(pool, "default") for row in page]
    assert len(set(ids)) == len(ids) == number
    known = await store.read(pool, ids)
    assert len(known) == number
    assert {record.state for record in known.values()} <= {"connected"}


async def test_a_page_is_built_in_a_thread_of_its_own(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "_PAGE", 10)
    where = set()

    def build(page: Sequence[Any]) -> list[int]:
        where.add(threading.get_ident())
        return [row["n"] for row in page]

    query = (
        "SELECT n FROM generate_series(1, 25) AS n WHERE $1::int IS NULL OR n > $1 "
        "ORDER BY n LIMIT $2"
    )
    assert await pages(pool, query, "n", build) == list(range(1, 26))
    assert threading.get_ident() not in where
