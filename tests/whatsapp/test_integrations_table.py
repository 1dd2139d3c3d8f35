"""``healthcare.integrations``: one enabled row an organization, and the RPC that people call."""

import asyncio
import json
import re
import uuid
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from evosaga.events.database import Pool
from evosaga.sagas.whatsapp.ownership import stored

INSERT = (
    "INSERT INTO healthcare.integrations (organization_id, type, provider, enabled) "
    "VALUES ($1, $2, $3, $4)"
)


async def rpc(pool: Pool, *values: Any) -> dict[str, Any]:
    places = ", ".join(f"${i}" for i in range(1, len(values) + 1))
    found = await pool.fetchval(f"SELECT healthcare.save_evolution_integration({places})", *values)
    row: dict[str, Any] = json.loads(found)
    return row


async def rows(pool: Pool, organization: UUID) -> list[asyncpg.Record]:
    return await pool.fetch(
        "SELECT * FROM healthcare.integrations WHERE organization_id = $1", organization
    )


async def test_an_organization_may_have_any_number_of_other_integrations(pool: Pool) -> None:
    organization = uuid.uuid4()
    for type_, provider in (("email", "smtp"), ("whatsapp", "cloud"), ("calendar", "google")):
        for _ in range(2):
            await pool.execute(INSERT, organization, type_, provider, True)
    assert len(await rows(pool, organization)) == 6
    assert (await rpc(pool, organization, "clinic-1"))["status"] == "pending"


@pytest.mark.fault("e7")
async def test_one_enabled_row_an_organization_type_and_provider(pool: Pool) -> None:
    organization = uuid.uuid4()
    await pool.execute(INSERT, organization, "whatsapp", "evolution", True)
    for type_, provider, enabled in (
        ("whatsapp", "evolution", False),
        ("whatsapp", "evolution", False),
        ("whatsapp", "cloud", True),
        ("email", "evolution", True),
    ):
        await pool.execute(INSERT, organization, type_, provider, enabled)
    with pytest.raises(asyncpg.UniqueViolationError, match="one_enabled_integration"):
        await pool.execute(INSERT, organization, "whatsapp", "evolution", True)
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.execute("UPDATE healthcare.integrations SET enabled = true")


async def test_the_rpc_saves_a_row_as_the_old_one_did(pool: Pool) -> None:
    organization = uuid.uuid4()
    saved = await rpc(pool, organization, "clinic-1", "5511999", "https://x.example/hook")
    [row] = await rows(pool, organization)
    assert saved["id"] == str(row["id"])
    assert (row["type"], row["provider"], row["enabled"]) == ("whatsapp", "evolution", True)
    assert (row["status"], row["whatsapp_number"]) == ("connected", "5511999")
    assert json.loads(row["config"]) == {
        "instance_name": "clinic-1",
        "webhook_url": "https://x.example/hook",
    }
    assert re.fullmatch("[0-9a-f]{64}", saved["webhook_token"])
    assert row["webhook_token"] == stored(saved["webhook_token"])


async def test_the_rpc_can_be_called_by_name_and_without_what_is_optional(pool: Pool) -> None:
    """As PostgREST calls it: every argument by its name."""
    organization = uuid.uuid4()
    found = await pool.fetchval(
        "SELECT healthcare.save_evolution_integration("
        "p_instance_name => 'clinic-1', p_organization_id => $1)",
        organization,
    )
    assert json.loads(found)["status"] == "pending"
    assert json.loads(found)["config"] == {"instance_name": "clinic-1"}


async def test_the_same_instance_again_updates_and_forgets_nothing(pool: Pool) -> None:
    organization = uuid.uuid4()
    first = await rpc(pool, organization, "clinic-1", None, "https://x.example/hook")
    await pool.execute(
        'UPDATE healthcare.integrations SET config = config || \'{"clinic_id": "c"}\''
    )
    second = await rpc(pool, organization, "clinic-1", "5511999")
    third = await rpc(pool, organization, "clinic-1")
    assert first["id"] == second["id"] == third["id"]
    assert [second["webhook_token"], third["webhook_token"]] == [None, None], "it is told once"
    [row] = await rows(pool, organization)
    assert row["webhook_token"] == stored(first["webhook_token"])
    assert (third["status"], third["whatsapp_number"]) == ("connected", "5511999")
    assert third["config"] == {
        "instance_name": "clinic-1",
        "webhook_url": "https://x.example/hook",
        "clinic_id": "c",
    }


async def test_another_instance_is_refused_and_the_one_that_is_there_is_named(pool: Pool) -> None:
    organization = uuid.uuid4()
    before = await rpc(pool, organization, "clinic-1")
    with pytest.raises(asyncpg.UniqueViolationError, match=r"already exists.*: clinic-1"):
        await rpc(pool, organization, "clinic-2")
    [row] = await rows(pool, organization)
    assert json.loads(row["config"]) == before["config"]
    await pool.execute("UPDATE healthcare.integrations SET enabled = false")
    assert (await rpc(pool, organization, "clinic-2"))["id"] != before["id"]


async def test_twenty_calls_at_once_make_one_row(pool: Pool) -> None:
    """Two servers of the old system, say: one instance gets the row, the others are told whose."""
    organization = uuid.uuid4()
    names = [f"clinic-{i % 4}" for i in range(20)]
    answers = await asyncio.gather(
        *(rpc(pool, organization, name) for name in names), return_exceptions=True
    )
    [row] = await rows(pool, organization)
    kept = json.loads(row["config"])["instance_name"]
    for name, answer in zip(names, answers, strict=True):
        if name == kept:
            assert isinstance(answer, dict)
            assert answer["id"] == str(row["id"])
        else:
            assert isinstance(answer, asyncpg.UniqueViolationError)
            assert f"already exists for this organization: {kept}" in str(answer)


async def test_not_everybody_may_call_the_rpc(pool: Pool) -> None:
    """PostgREST would offer it to the anonymous role if PUBLIC could."""
    allowed = await pool.fetchval(
        "SELECT bool_or(acl.grantee = 0) FROM pg_proc AS p, aclexplode(p.proacl) AS acl "
        "WHERE p.proname = 'save_evolution_integration'"
    )
    assert allowed is False
