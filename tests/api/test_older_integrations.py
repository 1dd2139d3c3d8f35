"""Integrations of older code over HTTP, the command line and the stream: names, empty columns."""

import uuid
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.routing import ClinicCache
from tests.api.conftest import CREATE, OPERATOR, OURS, asked, problem
from tests.support.commandline import commandline
from tests.support.driving import delete, outcome, publish

HERE = "/integrations/evolution/"
NAMES = [
    "Clinic_A.b-C",
    "Clinica Sol",
    "Clínica São João",
    "clinic+1",
    " lead",
    "100% & more?x=1#y",
    "clinic%2e%2e",
    "ab",
    "create",
    "診療所" * 20,
    'it\'s "quoted"; (really)',
]


async def put(pool: Pool, evolution: SimulatedEvolution, name: str) -> None:
    """An integration as older code left it: an instance, and a row that names it."""
    evolution.put(name, phone="5511999990000")
    await row(pool, name)


async def row(pool: Pool, name: str | None, whose: uuid.UUID = OURS) -> None:
    await pool.execute(
        """
        INSERT INTO healthcare.integrations (organization_id, status, config)
        VALUES ($1, 'connected', jsonb_strip_nulls(jsonb_build_object('instance_name', $2::text)))
        """,
        whose,
        name,
    )


async def gone(pool: Pool, evolution: SimulatedEvolution) -> bool:
    left = await pool.fetchval("SELECT count(*) FROM healthcare.integrations")
    return not left and not evolution.rows() and not evolution.live()


async def test_what_a_create_says_to_delete_first_can_be_deleted_over_http(
    ours: httpx.AsyncClient, pool: Pool, evolution: SimulatedEvolution, subtests: pytest.Subtests
) -> None:
    for name in NAMES:
        with subtests.test(name=name):
            await put(pool, evolution, name)
            refused = await ours.post(CREATE, json=asked())
            assert (refused.status_code, refused.json()["existing_instance"]) == (409, name)
            where = HERE + quote(name, safe="")
            assert (await ours.get(where)).json()["instance_name"] == name
            answer = await ours.delete(where)
            assert answer.status_code == 200, answer.text
            assert answer.json()["evolution_deleted"] is True
            assert await gone(pool, evolution)
    made = await ours.post(CREATE, json=asked())
    assert made.status_code == 201


async def test_a_name_with_every_oddity_can_be_deleted_by_command_and_command_line(
    parts: AppContext,
    settings: Settings,
    tmp_path: Path,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    for name in NAMES[:3]:
        await put(pool, evolution, name)
        ran = await commandline(tmp_path, settings)("delete", name)
        assert ran.code == 0, ran.err
        assert await gone(pool, evolution)
        await put(pool, evolution, name)
        assert (await outcome(pool, await publish(redis, delete(name)))).status == "completed"
        assert await gone(pool, evolution)


async def test_a_name_that_no_request_can_mean_is_said_to_be_so_everywhere(
    parts: AppContext,
    ours: httpx.AsyncClient,
    settings: Settings,
    tmp_path: Path,
    pool: Pool,
    evolution: SimulatedEvolution,
    subtests: pytest.Subtests,
) -> None:
    names = ("tab\there", "constructor", "a" * 256)
    for name in names:
        with subtests.test(name=name):
            await pool.execute("DELETE FROM healthcare.integrations")
            await row(pool, name)
            refused = await ours.post(CREATE, json=asked())
            assert refused.status_code == 409
            assert "remove its instance by hand" in refused.json()["message"]
            answer = await ours.delete(HERE + quote(name, safe=""))
            assert answer.status_code == 422
            assert "can't be handled" in problem(answer)["detail"]
    for name in names[:-1]:
        await row(pool, name, uuid.uuid4())
    health = await commandline(tmp_path, settings)("--json", "health")
    told = health.json["integrations"]
    assert len(told) == len(names)
    assert all("can't be handled" in one["cure"] for one in told)
    assert not evolution.journal.requests("delete")


async def test_a_strange_name_that_nobody_has_is_not_there(ours: httpx.AsyncClient) -> None:
    for name in ("nobody", "No Body", "tab\there", "constructor"):
        answer = await ours.delete(HERE + quote(name, safe=""))
        assert (answer.status_code, problem(answer)["code"]) == (404, "unknown_instance")


async def test_where_a_row_names_no_instance_a_create_says_what_to_do_instead(
    ours: httpx.AsyncClient, pool: Pool
) -> None:
    await row(pool, None)
    refused = await ours.post(CREATE, json=asked(organization_id=str(OURS)))
    told = refused.json()
    assert (refused.status_code, told["existing_instance"]) == (409, None)
    assert "names no instance" in told["message"]


async def test_a_new_name_is_as_narrow_as_ever(ours: httpx.AsyncClient) -> None:
    for name in NAMES[:5]:
        refused = await ours.post(CREATE, json=asked(instance_name=name, id=str(uuid.uuid4())))
        assert problem(refused)["code"] == "invalid_data"


@pytest.fixture
async def nullable(pool: Pool) -> None:
    """A table of older code, which asks for little and fills nothing in."""
    columns = ("organization_id", "status", "enabled", "config", "created_at", "updated_at")
    for column in columns:
        await pool.execute(
            f"ALTER TABLE healthcare.integrations ALTER {column} DROP NOT NULL, "
            f"ALTER {column} DROP DEFAULT"
        )


@pytest.mark.usefixtures("nullable")
async def test_rows_without_times_are_listed_shown_followed_and_deleted(
    operator: httpx.AsyncClient,
    settings: Settings,
    tmp_path: Path,
    pool: Pool,
    evolution: SimulatedEvolution,
) -> None:
    made = (await operator.post(CREATE, json=asked(channel="WHATSAPP-BAILEYS"))).json()
    name = made["instance_name"]
    await pool.execute("UPDATE healthcare.integrations SET created_at = NULL, updated_at = NULL")
    await pool.execute(
        "INSERT INTO healthcare.integrations (organization_id, config) "
        "SELECT gen_random_uuid(), jsonb_build_object('instance_name', 'older-' || n) "
        "FROM generate_series(1, 3) AS n"
    )
    evolution.pair(name, "5511999990000")
    evosaga = commandline(tmp_path, settings)
    assert "connected" in (await evosaga("health", "--fix")).out
    row = await pool.fetchrow("SELECT * FROM healthcare.integrations WHERE updated_at IS NOT NULL")
    assert row is not None
    assert (row["status"], row["whatsapp_number"]) == ("connected", "5511999990000")
    names, cursor = set(), ""
    for _ in range(4):
        page = (await operator.get(f"/integrations?limit=1{cursor}")).json()
        names |= {one["instance_name"] for one in page["integrations"]}
        cursor = f"&cursor={page['cursor']}"
    assert names == {name, "older-1", "older-2", "older-3"}
    one = await operator.get(HERE + name)
    assert (one.status_code, one.json()["created_at"]) == (200, None)
    session = await operator.post("/ui/login", data={"key": OPERATOR})
    assert session.status_code in (200, 303)
    assert (await operator.get("/ui/integrations")).status_code == 200
    assert (await operator.get(f"/ui/integrations/{name}")).status_code == 200
    assert (await operator.get("/metrics")).status_code == 200
    assert (await operator.delete(HERE + name)).status_code == 200


@pytest.mark.usefixtures("nullable")
async def test_a_row_of_no_organization_is_nobodys_and_can_be_deleted_by_who_sees_all(
    operator: httpx.AsyncClient,
    ours: httpx.AsyncClient,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    evolution.put("nobodys", phone="5511999990000")
    await pool.execute(
        "INSERT INTO healthcare.integrations (enabled, config) "
        "VALUES (true, jsonb_build_object('instance_name', 'nobodys'))"
    )
    (told,) = (await operator.get("/integrations")).json()["integrations"]
    assert (told["organization_id"], told["status"]) == (None, "pending")
    assert await ClinicCache(redis, pool).get("nobodys") is None, "no organization 'None'"
    assert (await ours.get(HERE + "nobodys")).status_code == 404
    assert (await ours.delete(HERE + "nobodys")).status_code == 404
    assert (await operator.delete(HERE + "nobodys")).status_code == 200
    assert await gone(pool, evolution)
