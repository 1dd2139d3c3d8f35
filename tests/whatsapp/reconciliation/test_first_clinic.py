"""The clinic of the account that this project began with, healed by one command.

Six instances that older code made, one row that names none of them, routing keys that lead
nowhere, and a status of "pending" although the QR code had been scanned.
"""

import json
import uuid

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.routing import ClinicCache
from evosaga.sagas.whatsapp.steps import routing_key
from tests.support.commandline import Evosaga
from tests.support.driving import count, create, delete, outcome, publish
from tests.whatsapp.reconciliation.conftest import Rows

CLINIC = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
NAMES = [f"clinic-{CLINIC}-{number}" for number in range(1, 7)]
CONNECTED = NAMES[3]
PHONE = "5511987654321"
NEIGHBOUR = "clinic-of-somebody-else"
ORPHANED = f"clinic-{CLINIC}-0"
EVERY_ROW = "SELECT * FROM healthcare.integrations"


@pytest.fixture
async def wound(redis: Redis, evolution: SimulatedEvolution, rows: Rows) -> None:
    for name in NAMES:
        evolution.put(name, phone=PHONE if name == CONNECTED else None)
    evolution.put(NEIGHBOUR, phone="5511900000000")
    await rows.insert(ORPHANED, organization_id=CLINIC, status="pending")
    value = {"clinic_id": "gone", "organization_id": str(CLINIC), "name": "Clínica Sol"}
    for name in NAMES[:3]:
        await redis.set(f"whatsapp:instance:{name}", json.dumps(value), ex=3600)
    await redis.set(f"whatsapp:instance:{NAMES[5]}", "garbage")


@pytest.mark.usefixtures("wound")
async def test_a_look_tells_all_of_it_and_changes_nothing(
    evosaga: Evosaga, evolution: SimulatedEvolution, pool: Pool, redis: Redis, rows: Rows
) -> None:
    before = (evolution.rows(), await redis.keys("*"), await pool.fetch(EVERY_ROW))
    ran = await evosaga("--json", "reconcile", "--organization-id", str(CLINIC))
    assert ran.code == 1
    found = {(drift["what"], drift["where"]): drift for drift in ran.json["drifts"]}
    extra = [name for name in NAMES if name != CONNECTED]
    assert set(found) == {
        ("orphaned_row", ORPHANED),
        ("unnamed", CONNECTED),
        *(("older_orphan", name) for name in extra),
        *(("key_left", name) for name in NAMES[:3]),
        ("key_unreadable", NAMES[5]),
    }
    assert all(drift["cause"] and drift["repair"] for drift in found.values())
    assert {d["policy"] for (what, _), d in found.items() if "key" not in what} == {"ask"}
    assert {drift["organization_id"] for drift in found.values()} == {str(CLINIC)}
    assert (evolution.rows(), await redis.keys("*"), await pool.fetch(EVERY_ROW)) == before
    assert PHONE not in ran.out
    for tables in ("sagas", "sightings", "connections"):
        assert await count(pool, f"SELECT count(*) FROM evosaga.{tables}") == 0


@pytest.mark.usefixtures("wound")
async def test_one_command_makes_a_clean_slate_and_a_new_integration_can_be_made_at_once(
    evosaga: Evosaga,
    evolution: SimulatedEvolution,
    settings: Settings,
    pool: Pool,
    redis: Redis,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        ran = await evosaga(
            "--json",
            *("reconcile", "--organization-id", str(CLINIC), "--keep", "none", "--fix"),
        )
        assert (ran.code, ran.json["drifts"]) == (0, [])
        assert {repair["status"] for repair in ran.json["repairs"]} == {"completed"}
        assert list(evolution.live()) == list(evolution.rows()) == [NEIGHBOUR]
        assert await rows.count() == 0
        assert not await redis.keys("whatsapp:instance:*")

        made = await outcome(pool, await publish(redis, create(organization_id=str(CLINIC))))
        assert made.status == "completed"
        assert set(evolution.live()) == {NEIGHBOUR, made.instance_name}
        assert (await evosaga("reconcile", "--organization-id", str(CLINIC))).code == 0
    removed_with_their_own_tokens(evolution)


@pytest.mark.usefixtures("wound")
async def test_one_command_keeps_the_one_that_is_connected(
    evosaga: Evosaga,
    evolution: SimulatedEvolution,
    settings: Settings,
    pool: Pool,
    redis: Redis,
    rows: Rows,
) -> None:
    integration = (await rows.of(ORPHANED))["id"]
    async with running_worker(settings):
        ran = await evosaga("--json", "reconcile", "--organization-id", str(CLINIC), "--fix")
        assert (ran.code, ran.json["drifts"]) == (0, []), ran.out
        assert set(evolution.live()) == set(evolution.rows()) == {CONNECTED, NEIGHBOUR}
        assert evolution.live()[CONNECTED].state == "open", "its phone stayed connected"
        row = await rows.of(CONNECTED)
        assert (row["id"], row["status"]) == (integration, "connected")
        assert row["whatsapp_number"] == PHONE
        assert await rows.count() == 1
        route = await ClinicCache(redis, pool).get(CONNECTED)
        assert route is not None
        assert (route.organization_id, route.whatsapp_number) == (str(CLINIC), PHONE)
        assert await redis.keys("whatsapp:instance:*") == [routing_key.key(CONNECTED).encode()]
        assert (await evosaga("reconcile")).code == 0

        # What was adopted can be deleted like any other, with the token that it has.
        gone = await outcome(pool, await publish(redis, delete(CONNECTED)))
        assert gone.status == "completed"
    assert set(evolution.live()) == {NEIGHBOUR}
    removed_with_their_own_tokens(evolution)


@pytest.mark.usefixtures("wound")
async def test_another_one_is_kept_if_a_person_says_so(
    evosaga: Evosaga, evolution: SimulatedEvolution, settings: Settings, rows: Rows
) -> None:
    async with running_worker(settings):
        ran = await evosaga(
            "reconcile", "--organization-id", str(CLINIC), "--keep", NAMES[0], "--fix"
        )
        assert ran.code == 0, ran.out
    assert set(evolution.live()) == {NAMES[0], NEIGHBOUR}
    assert (await rows.of(NAMES[0]))["status"] == "disconnected"


@pytest.mark.usefixtures("wound")
async def test_without_the_organization_s_name_nothing_of_older_code_is_touched(
    evosaga: Evosaga, evolution: SimulatedEvolution, settings: Settings, redis: Redis, rows: Rows
) -> None:
    async with running_worker(settings):
        ran = await evosaga("reconcile", "--fix")
    assert ran.code == 1
    assert f"evosaga reconcile --organization-id {CLINIC} --fix" in ran.err
    assert set(evolution.live()) == {*NAMES, NEIGHBOUR}
    assert await rows.count() == 1
    assert not await redis.keys("whatsapp:instance:*"), "keys are no loss"


def removed_with_their_own_tokens(evolution: SimulatedEvolution) -> None:
    """S8, and the neighbour was never even asked about."""
    deletes = evolution.journal.requests("delete")
    assert deletes
    assert {entry.key_kind for entry in deletes} == {"instance"}
    assert not [entry for entry in evolution.journal if entry.name == NEIGHBOUR and entry.operation]
