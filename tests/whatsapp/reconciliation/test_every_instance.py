"""Every instance on the servers is accounted for: ours, older code's, or a stranger's."""

import uuid

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.routing import ClinicCache
from evosaga.orchestrator.whatsapp.reconciliation import probes
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler, find, run_once
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import SECRET
from tests.support.commandline import Evosaga
from tests.support.driving import create, delete, outcome, publish
from tests.whatsapp.reconciliation.conftest import Rows
from tests.whatsapp.reconciliation.test_reconcile import healed, made

PHONE = "5511987654321"
CLINIC = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
OLDER = [f"clinic-{CLINIC}-{number}" for number in range(1, 7)]


def forgotten(
    evolution: SimulatedEvolution, phone: str | None = PHONE, name: str | None = None
) -> str:
    """An instance with our birthmark, made before the database went back in time."""
    lost, keys = uuid.uuid4(), KeyRing([SECRET])
    name = name or f"wa-{lost}"
    evolution.put(name, token=keys.instance_token(lost, keys.current), phone=phone)
    return name


def older(evolution: SimulatedEvolution, connected: str | None = OLDER[3]) -> None:
    for name in OLDER:
        evolution.put(name, phone=PHONE if name == connected else None)


async def test_what_older_code_left_is_listed_though_nobody_knows_its_organization(
    keeper: Reconciler, evolution: SimulatedEvolution
) -> None:
    older(evolution)
    evolution.put("a-neighbour", phone="5511900000000")
    found = await find(keeper)
    assert {(d.what, d.where, d.policy) for d in found.drifts} == {
        *(("older_orphan", name, "ask") for name in OLDER if name != OLDER[3]),
        ("contested", OLDER[3], "never"),
    }
    assert {drift.organization_id for drift in found.drifts} == {CLINIC}
    assert found.strangers == ["a-neighbour"]


async def test_the_command_line_says_that_the_stores_agree_only_where_they_do(
    evosaga: Evosaga, evolution: SimulatedEvolution, rows: Rows
) -> None:
    evolution.put("a-neighbour", phone="5511900000000")
    ran = await evosaga("reconcile")
    assert (ran.code, ran.out) == (0, "the stores agree\n")
    assert "1 instance of an unknown owner is left alone: a-neighbour" in ran.err
    await rows.insert("gone-for-good", status="disconnected")
    name = forgotten(evolution)
    forgotten(evolution, name="chosen-by-people")
    older(evolution)
    ran = await evosaga("--json", "reconcile")
    assert ran.code == 1
    found = {drift["where"]: drift["what"] for drift in ran.json["drifts"]}
    assert found == {
        "gone-for-good": "missing",
        name: "unrecorded",
        "chosen-by-people": "unrecorded",
        **{one: "contested" if one == OLDER[3] else "older_orphan" for one in OLDER},
    }
    assert ran.json["strangers"] == ["a-neighbour"]


async def test_a_row_whose_instance_is_gone_stays_listed_when_it_is_marked(
    settings: Settings, evosaga: Evosaga, evolution: SimulatedEvolution, rows: Rows
) -> None:
    await rows.insert("gone-for-good", status="connected")
    evolution.put("still-here", phone=PHONE)
    await rows.insert("still-here", number=PHONE)
    async with running_worker(settings):
        ran = await evosaga("--json", "reconcile", "--fix")
        assert ran.code == 1
        assert [drift["what"] for drift in ran.json["drifts"]] == ["still_missing"]
        ran = await evosaga("reconcile")
        assert ran.code == 1
        assert "agree" not in ran.out


async def test_what_the_log_has_forgotten_is_removed_only_by_its_own_name(
    settings: Settings, evosaga: Evosaga, evolution: SimulatedEvolution
) -> None:
    one, other = forgotten(evolution, name="chosen-by-people"), forgotten(evolution, None)
    evolution.put("a-neighbour", phone="5511900000000")
    async with running_worker(settings):
        ran = await evosaga("reconcile", "--fix")
        assert ran.code == 1
        for wrong in ("a-neighbour", "nobody"):
            ran = await evosaga("reconcile", "--fix", "--remove", wrong)
            assert ran.code == 2
            assert one in ran.err
        assert set(evolution.live()) == {one, other, "a-neighbour"}
        ran = await evosaga("--json", "reconcile", "--fix", "--remove", one)
        assert [drift["where"] for drift in ran.json["drifts"]] == [other]
        assert set(evolution.live()) == {other, "a-neighbour"}


@pytest.mark.parametrize("whose", ["ours", "chosen", "older"])
async def test_an_instance_without_row_or_log_is_given_to_the_organization_that_is_named(
    settings: Settings,
    evosaga: Evosaga,
    evolution: SimulatedEvolution,
    pool: Pool,
    redis: Redis,
    rows: Rows,
    whose: str,
) -> None:
    if whose != "older":
        name = forgotten(evolution, name=None if whose == "ours" else "chosen-by-people")
    else:
        older(evolution)
        name = OLDER[3]
    async with running_worker(settings):
        ran = await evosaga(
            *("reconcile", "--organization-id", str(CLINIC), "--keep", name, "--fix")
        )
        assert ran.code == 0, ran.out + ran.err
        assert ran.out.endswith("the stores agree\n")
        assert list(evolution.live()) == [name]
        row = await rows.of(name)
        assert (row["organization_id"], row["status"]) == (CLINIC, "connected")
        assert row["whatsapp_number"] == PHONE
        assert row["webhook_token"]
        route = await ClinicCache(redis, pool).get(name)
        assert route is not None
        assert route.organization_id == str(CLINIC)
        refused = await outcome(pool, await publish(redis, create(organization_id=str(CLINIC))))
        assert refused.code == "integration_exists"
        gone = await outcome(pool, await publish(redis, delete(name)))
        assert gone.status == "completed"
        assert not evolution.live()


async def test_upkeep_that_has_seen_it_makes_a_delete_possible_and_a_second_one_beside_it_not(
    settings: Settings,
    keeper: Reconciler,
    evolution: SimulatedEvolution,
    pool: Pool,
    redis: Redis,
) -> None:
    older(evolution)
    name = forgotten(evolution)
    async with running_worker(settings):
        unseen = await outcome(pool, await publish(redis, delete(name)))
        assert unseen.code == "not_found"
        await run_once(keeper)
        refused = await outcome(pool, await publish(redis, create(organization_id=str(CLINIC))))
        assert (refused.code, refused.existing_instance) == ("integration_exists", OLDER[3])
        stranger = delete(OLDER[3], organization_id=str(uuid.uuid4()))
        assert (await outcome(pool, await publish(redis, stranger))).code == "not_found"
        for one in (OLDER[3], OLDER[0], name):
            gone = await outcome(pool, await publish(redis, delete(one)))
            assert gone.status == "completed", (one, gone.code, gone.message)
            assert one not in evolution.live()
            again = await outcome(pool, await publish(redis, delete(one)))
            assert again.code == "not_found"
        done = await outcome(pool, await publish(redis, create(organization_id=str(CLINIC))))
        assert done.status == "completed", "what has no phone stands in nobody's way"


@pytest.fixture
def soon_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of which nobody believes for long that it is just loading its instances."""
    monkeypatch.setattr(probes, "_LOADING", (0.05, 0.05, 0.1, 0.1))


@pytest.mark.usefixtures("soon_loaded")
async def test_3a_half_an_instance_is_found_behind_a_row_that_waits_for_its_phone(
    settings: Settings, keeper: Reconciler, evolution: SimulatedEvolution, pool: Pool, redis: Redis
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis, channel="WHATSAPP-BAILEYS")
        name = str(saga.instance_name)
        evolution.half_delete(name)
        assert [(d.what, d.where) for d in (await find(keeper)).drifts] == [("half_there", name)]
        await healed(keeper)
        assert [d.what for d in (await find(keeper)).drifts] == ["still_half"]


@pytest.mark.usefixtures("soon_loaded")
async def test_3a_and_behind_any_other_row(
    keeper: Reconciler, evolution: SimulatedEvolution, rows: Rows
) -> None:
    for status in ("connected", "disconnected"):
        evolution.put(status, phone=PHONE if status == "connected" else None)
        await rows.insert(status, status=status, number=PHONE)
    assert (await find(keeper)).drifts == []
    for status in ("connected", "disconnected"):
        evolution.half_delete(status)
    found = {(d.what, d.where) for d in (await find(keeper)).drifts}
    assert found == {("half_there", "connected"), ("half_there", "disconnected")}


async def test_an_instance_whose_token_is_hidden_is_neither_lost_nor_taken_for_a_strangers(
    settings: Settings,
    keeper: Reconciler,
    evolution: SimulatedEvolution,
    pool: Pool,
    redis: Redis,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        await made(pool, redis)
    evolution.put("clinic-sol", phone=PHONE)
    await rows.insert("clinic-sol", organization_id=CLINIC, number=PHONE)
    older(evolution, None)
    evolution.arm("list_shape", shape="no_token", times=None)
    found = await find(keeper)
    assert {(d.what, d.where) for d in found.drifts} == {("unanswered", name) for name in OLDER}
    slate = await find(keeper, keep=Keep(CLINIC, "none"))
    removals = [d for d in slate.drifts if d.command and d.command.type == "instance.remove"]
    assert not removals, "nothing would show that it is the same one"
