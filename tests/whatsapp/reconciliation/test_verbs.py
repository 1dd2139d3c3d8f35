"""``evosaga reconcile`` and ``evosaga health``: what they say, and their exit codes."""

import json
import uuid

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.cli.output import printable
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp.steps import routing_key
from tests.support.commandline import Evosaga
from tests.support.driving import count, create, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.reconciliation.conftest import Rows

PHONE = "5511987654321"
CLINIC = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")


async def test_stores_that_agree_are_one_line_and_exit_code_0(
    evosaga: Evosaga, settings: Settings, pool: Pool, redis: Redis
) -> None:
    async with running_worker(settings):
        await outcome(pool, await publish(redis, create()))
        ran = await evosaga("reconcile")
        assert (ran.code, ran.out) == (0, "the stores agree\n")
        ran = await evosaga("reconcile", "--fix")
        assert (ran.code, ran.out) == (0, "the stores agree\n")
        ran = await evosaga("--json", "reconcile", "--fix")
        told = {"drifts": [], "repairs": [], "before": [], "strangers": [], "busy": 0}
        assert (ran.code, ran.json) == (0, told)


async def test_drift_is_a_table_of_what_where_why_and_what_to_do(
    evosaga: Evosaga, pool: Pool, redis: Redis
) -> None:
    await redis.set(routing_key.key("nobody-s"), "garbage", ex=600)
    ran = await evosaga("reconcile")
    assert ran.code == 1
    heading, line = ran.out.splitlines()
    assert heading.split() == ["WHAT", "WHERE", "POLICY", "CAUSE", "REPAIR"]
    assert line.split()[:3] == ["key_unreadable", "nobody-s", "auto"]
    assert "the routing key can't be read" in line
    assert "evosaga reconcile --fix" in ran.err
    assert await redis.exists(routing_key.key("nobody-s"))
    assert await count(pool, "SELECT count(*) FROM evosaga.sightings") == 0


async def test_fixing_says_what_it_did_and_what_is_left(
    evosaga: Evosaga, settings: Settings, redis: Redis, evolution: SimulatedEvolution, rows: Rows
) -> None:
    await redis.set(routing_key.key("nobody-s"), "garbage", ex=600)
    evolution.put(f"clinic-{CLINIC}", phone=PHONE)
    async with running_worker(settings):
        ran = await evosaga("reconcile", "--fix", "--organization-id", str(CLINIC))
        assert ran.code == 1
        assert "left:\n" in ran.out
        assert "contested" in ran.out
        ran = await evosaga("reconcile", "--fix")
        assert ran.code == 1, "what older code left is listed, whoever it was made for"
        assert "key_unreadable nobody-s: completed" in ran.out
        evolution.drop(f"clinic-{CLINIC}")
        ran = await evosaga("reconcile", "--fix")
    assert ran.code == 0
    assert ran.out.endswith("the stores agree\n")


async def test_without_a_worker_it_says_so_and_does_not_wait_for_ever(
    evosaga: Evosaga, redis: Redis
) -> None:
    await redis.set(routing_key.key("nobody-s"), "garbage", ex=600)
    ran = await evosaga("--json", "reconcile", "--fix", "--timeout", "1")
    assert ran.code == 1
    assert "no worker is running" in ran.err
    assert [repair["status"] for repair in ran.json["repairs"]] == ["running"]


async def test_what_makes_no_sense_is_refused_with_the_cure(
    evosaga: Evosaga, rows: Rows, subtests: pytest.Subtests
) -> None:
    await rows.insert("one-of-theirs", organization_id=CLINIC)
    for said, *arguments in (
        ("give --organization-id as well", "--keep", "none"),
        ("is not a UUID", "--organization-id", "x"),
        (
            "there is no nobody-s to keep; the organization has: one-of-theirs",
            *("--organization-id", str(CLINIC), "--keep", "nobody-s"),
        ),
        ("is not a number", "--fix", "--timeout", "soon"),
    ):
        with subtests.test(said):
            ran = await evosaga("reconcile", *arguments)
            assert (ran.code, ran.out) == (2, "")
            assert said in ran.err


async def test_servers_that_can_not_be_reached_are_exit_code_3(
    evosaga: Evosaga, evolution: SimulatedEvolution, subtests: pytest.Subtests
) -> None:
    for verb in ("reconcile", "health"):
        with subtests.test(verb):
            evolution.disarm()
            await is_exit_code_3(verb, evosaga, evolution)


async def is_exit_code_3(verb: str, evosaga: Evosaga, evolution: SimulatedEvolution) -> None:
    ran = await evosaga.having(EVOLUTION_URL="http://127.0.0.1:1")(verb)
    assert ran.code == 3
    assert "nothing was changed" in ran.err
    evolution.arm("list_empty", operation="fetch", times=None)
    ran = await evosaga.having(REDIS_URL="redis://127.0.0.1:1")(verb)
    assert ran.code == 3
    ran = await evosaga.having(EVOLUTION_API_KEY="wrong")(verb)
    assert ran.code == 3
    assert "does not give its list" in ran.err
    ran = await evosaga.having(SECRET_KEY="")(verb)
    assert (ran.code, "EVOSAGA_SECRET_KEY" in ran.err) == (2, True)


@pytest.mark.parametrize("odd", ["\0", "\ud800", "x" * 240])
async def test_names_that_can_not_be_stored_are_listed_and_stop_nothing(
    evosaga: Evosaga, evolution: SimulatedEvolution, rows: Rows, odd: str
) -> None:
    for name in (f"clinic-{CLINIC}{odd}", f"sol{odd}", f"wa-{uuid.uuid4()}{odd}"):
        evolution.put(name[:255], phone=PHONE, token=f"a-token{odd[:1]}-of-theirs")
    evolution.put("ours", phone=PHONE)
    await rows.insert("ours", number=PHONE, organization_id=CLINIC)
    for verb in (
        ("reconcile",),
        ("reconcile", "--fix", "--timeout", "1"),
        ("health",),
        ("health", "--fix"),
        ("doctor",),
    ):
        ran = await evosaga(*verb)
        assert "Traceback" not in ran.err, (verb, ran)
        assert ran.code in (0, 1), (verb, ran)


def test_names_from_elsewhere_do_not_drive_a_terminal() -> None:
    assert printable("clinic\x1b[2J\x07 \u202esol") == "clinic?[2J? ?sol"
    assert printable("Clínica Sol – 1") == "Clínica Sol – 1"


# --- health ------------------------------------------------------------------------------------


async def test_health_tells_how_everybody_is_and_changes_nothing(
    evosaga: Evosaga, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    assert (await evosaga("health")).out == "there are no integrations\n"
    for name in ("well", "down", "gone"):
        evolution.put(name, phone=PHONE)
        await rows.insert(name, number=PHONE)
    assert (await evosaga("health")).code == 0
    evolution.hang_up("down")
    evolution.drop("gone")
    ran = await evosaga("--json", "health")
    assert ran.code == 1
    told = {one["instance"]: one for one in ran.json["integrations"]}
    assert {name: one["state"] for name, one in told.items()} == {
        "well": "connected",
        "down": "down",
        "gone": "missing",
    }
    assert "the row should say disconnected" in told["gone"]["cure"]
    assert PHONE not in ran.out
    ran = await evosaga("health")
    assert ran.out.splitlines()[0].split() == [
        "INSTANCE",
        "NAME",
        "ORGANIZATION",
        "ROW",
        "STATE",
        "SINCE",
        "CURE",
    ]
    assert ran.out.splitlines()[-1] == "3 integrations: 1 connected, 1 down, 1 missing"
    assert await count(pool, "SELECT count(*) FROM evosaga.connections") == 0
    assert (await rows.of("gone"))["status"] == "connected"


async def test_health_fix_connects_what_can_be_and_lets_rows_follow(
    evosaga: Evosaga, evolution: SimulatedEvolution, rows: Rows
) -> None:
    for name in ("down", "gone", "logged-out"):
        evolution.put(name, phone=PHONE)
        await rows.insert(name, number=PHONE)
    evolution.hang_up("down")
    evolution.drop("gone")
    evolution.logout("logged-out")
    await eventually(lambda: evolution.rows()["logged-out"].state == "close")
    ran = await evosaga("--json", "health", "--fix")
    assert ran.code == 1, "two need a person"
    states = {one["instance"]: one["state"] for one in ran.json["integrations"]}
    assert states == {"down": "connected", "gone": "missing", "logged-out": "needs_qr"}
    assert evolution.live()["down"].state == "open"
    assert [(await rows.of(name))["status"] for name in states] == [
        {"connected": "connected"}.get(state, "disconnected") for state in states.values()
    ]
    assert [entry.name for entry in evolution.journal.requests("connect")] == ["down"]
    assert json.dumps(ran.json).count(PHONE) == 0


async def test_a_ban_is_told_as_a_ban_wherever_somebody_asks(
    evosaga: Evosaga, settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create(channel="WHATSAPP-BAILEYS")), 30)
    assert saga.instance_name is not None
    evolution.pair(saga.instance_name)
    assert (await evosaga("health", "--fix")).code == 0
    evolution.logout(saga.instance_name, 403)
    await eventually(lambda: evolution.rows()[saga.instance_name or ""].state == "close")
    ran = await evosaga("--json", "health", "--fix")
    [one] = ran.json["integrations"]
    assert (ran.code, one["state"], one["row"]) == (1, "banned", "disconnected")
    assert "logged out" not in ran.out
    assert "WhatsApp bans or forbids the number" in one["cure"]
    told = (await evosaga("why", saga.instance_name)).out
    assert "Its integration has been banned for" in told
    assert "for WhatsApp's reason 403" in told
    assert "What you can do: see what WhatsApp says" in told or "WhatsApp bans" in told
