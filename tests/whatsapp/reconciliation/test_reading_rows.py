"""Rows are read page by page."""

import uuid

import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.health import store
from evosaga.orchestrator.whatsapp.integrations import rows as rows_module
from evosaga.orchestrator.whatsapp.integrations.rows import newest_first, rows_by, rows_on, scan
from tests.whatsapp.reconciliation.conftest import Rows


@pytest.mark.parametrize("number", [0, 3, 4, 7])
async def test_every_row_is_read_once(
    pool: Pool, rows: Rows, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(rows_module, "_SOME", 2)
    for n in range(number):
        await rows.insert(f"clinic-{n}")
    await pool.execute(
        "INSERT INTO evosaga.connections (integration_id, state) "
        "SELECT id, 'connected' FROM healthcare.integrations"
    )
    ids = [row.id async for page in rows_on(pool, "default") for row in page]
    assert len(set(ids)) == len(ids) == number
    scanned = [one async for page in scan(pool, "default") for one in page]
    assert [one.row.id for one in scanned] == ids
    assert all(one.alone and one.checked == 0.0 for one in scanned)
    found = await rows_by(pool, ids=ids[:3], names={f"clinic-{n}" for n in range(number)})
    assert [row.instance_name for row in newest_first(found)] == [
        f"clinic-{n}" for n in reversed(range(number))
    ]
    known = await store.read(pool, ids)
    assert len(known) == number
    assert {record.state for record in known.values()} <= {"connected"}


async def test_a_row_is_not_alone_beside_another_of_its_name_or_in_use_by_its_organization(
    pool: Pool, rows: Rows
) -> None:
    whose = uuid.uuid4()
    await rows.insert("mine", organization_id=whose)
    await rows.insert("before", organization_id=whose, enabled=False)
    await rows.insert("shared")
    await rows.insert("shared", enabled=False)
    scanned = [one async for page in scan(pool, "default") for one in page]
    told = {(one.row.instance_name, one.row.enabled): one.alone for one in scanned}
    assert told == {
        ("mine", True): True,
        ("before", False): False,
        ("shared", True): False,
        ("shared", False): False,
    }
