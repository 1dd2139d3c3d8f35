"""Health on real servers: rows follow what is real, and what may be reconnected is."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from aiohttp import web
from pydantic import SecretStr
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.receivers import PHONES, Receiver
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.alerts.dispatcher import Dispatcher, Posting
from evosaga.orchestrator.whatsapp.health import fix
from evosaga.orchestrator.whatsapp.health.monitor import (
    HealthMonitor,
    HealthReport,
    examine,
    run_once,
)
from evosaga.orchestrator.whatsapp.health.server_check import (
    ServerLook,
    Thoroughness,
    act,
    look_at,
)
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
from tests.support.driving import count, delete, publish
from tests.support.waiting import eventually
from tests.whatsapp.reconciliation.conftest import Rows

PHONE = "5511987654321"


async def put(evolution: SimulatedEvolution, rows: Rows, *names: str) -> None:
    """Connected integrations of older code, in both stores."""
    for name in names:
        evolution.put(name, phone=PHONE)
        await rows.insert(name, number=PHONE)


async def rounds(doctor: HealthMonitor, number: int) -> HealthReport:
    """So many, the last one's answer; a server that just started may cut a connection or two."""
    done = await run_once(doctor)
    for _ in range(number - 1):
        done = await run_once(doctor)
    assert done.aborted is None
    return done


async def due_now(pool: Pool) -> None:
    """The time of the next try has come."""
    await pool.execute("UPDATE evosaga.connections SET next_reconnect_at = now()")


async def notices(pool: Pool) -> list[tuple[str, dict[str, Any]]]:
    told = await pool.fetch("SELECT type, data FROM evosaga.notices ORDER BY id")
    return [(row["type"], json.loads(row["data"])) for row in told]


async def states(pool: Pool) -> list[str]:
    rows = await pool.fetch("SELECT state FROM evosaga.connections ORDER BY state")
    return [row["state"] for row in rows]


async def test_all_is_well_with_one_list_call_and_a_few_asked_in_turn(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, *(f"clinic-{n}" for n in range(50)))
    done = await rounds(doctor, 1)
    assert done.summary()["states"] == {"connected": 50}
    assert len(evolution.journal.requests("fetch")) == 1
    assert len(evolution.journal.requests("connectionState")) == 20
    await rounds(doctor, 2)
    asked = {entry.name for entry in evolution.journal.requests("connectionState")}
    assert len(asked) == 50, "everybody's turn comes"
    assert await notices(pool) == []


@pytest.mark.fault("w13")
async def test_a_phone_that_is_paired_is_seen_without_any_webhook(
    settings: Settings, doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    evolution.put("clinic-sol")
    await rows.insert("clinic-sol", status="pending")
    assert (await rounds(doctor, 3)).summary()["states"] == {"pending": 1}
    assert (await rows.of("clinic-sol"))["status"] == "pending"
    evolution.put("clinic-sol", phone=PHONE)
    await rounds(doctor, 1)
    row = await rows.of("clinic-sol")
    assert (row["status"], row["whatsapp_number"]) == ("connected", PHONE)
    [(kind, data)] = await notices(pool)
    assert kind == "integration.connected"
    assert PHONE not in json.dumps(data)


@pytest.mark.fault("n7")
@pytest.mark.parametrize("code", [401, 402, 403, 406])
async def test_who_was_logged_out_needs_a_person_and_is_never_reconnected(
    code: int, doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.logout("clinic-sol", code)
    await eventually(lambda: evolution.rows()["clinic-sol"].state == "close")
    await rounds(doctor, 4)
    assert (await rows.of("clinic-sol"))["status"] == "disconnected"
    # A ban is told as one: scanning a QR code again would mend nothing.
    state = "banned" if code in (402, 403) else "needs_qr"
    assert await states(pool) == [state]
    assert not evolution.journal.requests("connect")
    [(kind, data)] = await notices(pool)
    assert (kind, data["state"], data["reason"]) == ("integration.disconnected", state, code)


async def test_a_connection_that_broke_is_taken_up_again_with_the_instances_own_token(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.hang_up("clinic-sol", 428)
    await rounds(doctor, 1)
    assert (await rows.of("clinic-sol"))["status"] == "connected", "one look is not enough"
    await rounds(doctor, 1)
    assert (await rows.of("clinic-sol"))["status"] == "disconnected"
    assert not evolution.journal.requests("connect"), "its time has not come"
    await due_now(pool)
    assert (await rounds(doctor, 1)).reconnects == 1
    [request] = evolution.journal.requests("connect")
    assert request.key_kind == "instance"
    await eventually(lambda: evolution.live()["clinic-sol"].state == "open")
    await eventually(lambda: evolution.rows()["clinic-sol"].state == "open")
    await rounds(doctor, 1)
    assert (await rows.of("clinic-sol"))["status"] == "connected"
    assert [kind for kind, _ in await notices(pool)] == [
        "integration.disconnected",
        "integration.connected",
    ]


async def test_two_that_check_at_once_connect_a_phone_once(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    """Both have looked before either acts, as processes of the API and a worker's round may."""
    names = [f"clinic-{n}" for n in range(5)]
    await put(evolution, rows, *names)
    await rounds(doctor, 1)
    for name in names:
        evolution.hang_up(name, 428)
    await rounds(doctor, 2)
    await due_now(pool)
    now = await pool.fetchval("SELECT now()")
    looks = [await look_at(doctor, "default", Thoroughness(eager=True), now) for _ in range(2)]
    first, second = (look for look in looks if isinstance(look, ServerLook))
    assert len(first.due) == len(second.due) == 5
    acts = await asyncio.gather(*(act(doctor, look, now, lambda: True) for look in (first, second)))
    assert sum(reconnects for _, reconnects, _ in acts) == 5
    assert await act(doctor, second, now, lambda: True) == (0, 0, 0), "nor by one that was paused"
    asked = [request.path for request in evolution.journal.requests("connect")]
    assert len(asked) == len(set(asked)) == 5
    assert await count(pool, "SELECT count(*) FROM evosaga.connections WHERE reconnects = 1") == 5


async def test_two_people_who_mend_at_once_connect_a_phone_once_and_both_see_it_connected(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.hang_up("clinic-sol", 428)
    evolution.arm("slow", operation="connect", seconds=1.0, times=None)
    for told in await asyncio.gather(fix.fix(doctor), fix.fix(doctor)):
        assert told.states == {"connected": 1}
    assert len(evolution.journal.requests("connect")) == 1


async def test_who_mends_while_evolution_is_connecting_a_phone_for_another_does_not_ask_again(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    """Unlike one who comes when it has had its time."""
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.hang_up("clinic-sol", 428)
    evolution.arm("slow", operation="connect", seconds=1.0)
    first = asyncio.ensure_future(run_once(doctor, eager=True))
    tried = "SELECT count(*) FROM evosaga.connections WHERE reconnects = 1"
    await eventually(lambda: count(pool, tried))
    second = await run_once(doctor, eager=True)
    assert (second.states, second.reconnects) == ({"down": 1}, 0)
    assert (await first).reconnects == 1

    evolution.hang_up("clinic-sol", 428)
    ago = "next_reconnect_at - interval '15 seconds'"
    await pool.execute(f"UPDATE evosaga.connections SET next_reconnect_at = {ago}")
    assert (await run_once(doctor, eager=True)).reconnects == 1


async def test_a_look_from_before_a_try_does_not_take_it_back(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    """A round has seen it down for the first time when a person has it connected."""
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.hang_up("clinic-sol", 428)
    now = await pool.fetchval("SELECT now()")
    eager = [await look_at(doctor, "default", Thoroughness(e), now) for e in (False, True)]
    round_, person = (look for look in eager if isinstance(look, ServerLook))
    assert (await act(doctor, person, now, lambda: True))[1] == 1
    tried = "SELECT reconnects, next_reconnect_at FROM evosaga.connections"
    before = await pool.fetchrow(tried)
    await act(doctor, round_, now, lambda: True)
    assert await pool.fetchrow(tried) == before


@pytest.mark.fault("n8")
async def test_when_all_are_down_they_are_reconnected_a_few_at_a_time(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    names = [f"clinic-{n:02}" for n in range(40)]
    await put(evolution, rows, *names)
    await rounds(doctor, 1)
    for name in names:
        evolution.hang_up(name)
    await rounds(doctor, 2)
    spread = "SELECT count(DISTINCT next_reconnect_at) FROM evosaga.connections"
    assert await count(pool, spread) > 35, "not all at the same moment"
    await due_now(pool)
    done = await rounds(doctor, 1)
    assert done.reconnects == 25
    calls = evolution.journal.requests("connect")
    edges = sorted([(e.received_at, 1) for e in calls] + [(e.answered_at or 0, -1) for e in calls])
    out, most = 0, 0
    for _, step in edges:
        out += step
        most = max(most, out)
    assert most <= 4


@pytest.mark.fault("n8")
async def test_reconnecting_stops_while_the_server_does_not_answer(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    names = [f"clinic-{n:02}" for n in range(20)]
    await put(evolution, rows, *names)
    await rounds(doctor, 1)
    for name in names:
        evolution.hang_up(name)
    await rounds(doctor, 2)
    await due_now(pool)
    evolution.arm("5xx_before", operation="connect", times=None)
    await run_once(doctor)
    assert 1 <= len(evolution.journal.requests("connect")) <= 5


@pytest.mark.fault("n9", "w15")
async def test_who_is_being_deleted_is_not_reconnected(
    settings: Settings,
    doctor: HealthMonitor,
    evolution: SimulatedEvolution,
    rows: Rows,
    pool: Pool,
    redis: Redis,
) -> None:
    await put(evolution, rows, "clinic-sol", "clinic-mar")
    await rounds(doctor, 1)
    for name in ("clinic-sol", "clinic-mar"):
        evolution.hang_up(name)
    await rounds(doctor, 2)
    await pool.execute(
        "UPDATE healthcare.integrations SET status = 'deleting' "
        "WHERE config ->> 'instance_name' = 'clinic-mar'"
    )
    await due_now(pool)
    evolution.arm("slow", operation="delete", seconds=1.5, name="clinic-sol")
    async with running_worker(settings):
        command = await publish(redis, delete("clinic-sol"))
        await eventually(
            lambda: count(
                pool, f"SELECT count(*) FROM evosaga.sagas WHERE command_id = '{command}'"
            )
        )
        await due_now(pool)
        done = await run_once(doctor)
        assert done.reconnects == 0
        assert not evolution.journal.requests("connect")
        evolution.put("clinic-sol", phone=PHONE)  # 2.3.7 deletes none whose socket is dead
        # A DELETE that is refused, as happens now and then, is repeated after its own long wait.
        await eventually(lambda: "clinic-sol" not in evolution.rows(), 60)
    assert (await rows.of("clinic-mar"))["status"] == "deleting"


@pytest.mark.fault("n9")
async def test_who_begins_to_be_deleted_after_the_look_is_not_reconnected(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.hang_up("clinic-sol")
    await rounds(doctor, 2)
    await due_now(pool)
    # The last question before anything is sent is to Postgres.
    await pool.execute(
        """
        CREATE FUNCTION pg_temp_mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE healthcare.integrations SET status = 'deleting'; RETURN NULL; END $$;
        CREATE TRIGGER mark AFTER INSERT OR UPDATE ON evosaga.connections
            FOR EACH STATEMENT EXECUTE FUNCTION pg_temp_mark();
        """
    )
    assert (await rounds(doctor, 1)).reconnects == 0
    assert not evolution.journal.requests("connect")


@pytest.mark.fault("n10")
async def test_a_connection_that_comes_and_goes_is_left_in_peace(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    for _ in range(4):
        await rounds(doctor, 1)
        evolution.hang_up("clinic-sol")
        await due_now(pool)
        await rounds(doctor, 1)
        evolution.put("clinic-sol", phone=PHONE)
    assert (await rows.of("clinic-sol"))["status"] == "connected"
    assert await notices(pool) == []
    assert not evolution.journal.requests("connect")


@pytest.mark.fault("n11")
async def test_a_name_that_is_a_strangers_now_is_flagged_and_not_reconnected(
    settings: Settings,
    doctor: HealthMonitor,
    evolution: SimulatedEvolution,
    rows: Rows,
    pool: Pool,
    redis: Redis,
) -> None:
    from tests.whatsapp.reconciliation.test_reconcile import made

    async with running_worker(settings):
        saga = await made(pool, redis)
    name = str(saga.instance_name)
    await rounds(doctor, 1)
    assert (await rows.of(name))["status"] == "connected"
    evolution.drop(name)
    evolution.put(name, phone="5511900000000")
    evolution.hang_up(name)
    await rounds(doctor, 3)
    await due_now(pool)
    await rounds(doctor, 1)
    assert await states(pool) == ["foreign"]
    row = await rows.of(name)
    assert (row["status"], row["whatsapp_number"]) == ("disconnected", None)
    assert len(evolution.journal.requests("connect")) == 0


@pytest.mark.fault("d9")
async def test_an_instance_that_is_gone_is_flagged_and_told_of(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.drop("clinic-sol")
    await rounds(doctor, 3)
    assert (await rows.of("clinic-sol"))["status"] == "disconnected"
    assert await states(pool) == ["missing"]
    assert [kind for kind, _ in await notices(pool)] == ["integration.disconnected"]
    assert not evolution.rows()


async def test_half_an_instance_is_found_in_its_turn_though_the_list_shows_it_as_connected(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.half_delete("clinic-sol", keep="row")
    await rounds(doctor, 2)
    assert await states(pool) == ["half"]
    assert (await rows.of("clinic-sol"))["status"] == "disconnected"
    await evolution.restart()
    await eventually(lambda: evolution.live()["clinic-sol"].state == "open")
    await rounds(doctor, 2)
    assert (await rows.of("clinic-sol"))["status"] == "connected"


@pytest.mark.fault("n4")
async def test_a_list_that_is_not_to_be_believed_changes_nothing(
    doctor: HealthMonitor,
    evolution: SimulatedEvolution,
    rows: Rows,
    pool: Pool,
    subtests: pytest.Subtests,
) -> None:
    await put(evolution, rows, *(f"clinic-{n}" for n in range(10)))
    await rounds(doctor, 1)
    connected = "SELECT count(*) FROM healthcare.integrations WHERE status = 'connected'"
    for mode in ("list_empty", "list_partial", "5xx_before"):
        with subtests.test(mode):
            evolution.disarm()
            evolution.arm(mode, operation="fetch", times=None)
            for _ in range(3):
                assert (await run_once(doctor)).aborted
            with pytest.raises(ObservationFailed):
                await examine(doctor)
            assert await count(pool, connected) == 10
            assert await notices(pool) == []


@pytest.mark.fault("c17")
async def test_a_server_that_is_warming_up_loses_nobody(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, *(f"clinic-{n}" for n in range(4)))
    await rounds(doctor, 1)
    await evolution.restart(warmup=60.0)
    await run_once(doctor)
    assert (
        await count(pool, "SELECT count(*) FROM healthcare.integrations WHERE status = 'connected'")
        == 4
    )


@pytest.mark.parametrize("number", [None, PHONE])
async def test_a_phone_that_hides_its_number_is_connected_and_the_number_stays_as_it_was(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, number: str | None
) -> None:
    evolution.put("clinic-sol", phone="998877665544332211@lid")
    await rows.insert("clinic-sol", status="disconnected", number=number)
    await rounds(doctor, 2)
    row = await rows.of("clinic-sol")
    assert (row["status"], row["whatsapp_number"]) == ("connected", number)
    evolution.hang_up("clinic-sol", 401)
    await rounds(doctor, 2)
    row = await rows.of("clinic-sol")
    assert (row["status"], row["whatsapp_number"]) == ("disconnected", number)


@pytest.mark.parametrize("shape", ["v1", "no_token"])
async def test_older_lists_are_understood_and_a_hidden_token_hides_no_connection(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool, shape: str
) -> None:
    await put(evolution, rows, "clinic-sol", "clinic-mar")
    evolution.arm("list_shape", shape=shape, times=None)
    evolution.logout("clinic-mar", 401)
    await rounds(doctor, 2)
    assert (await rows.of("clinic-sol"))["status"] == "connected"
    assert (await rows.of("clinic-mar"))["status"] == "disconnected"
    assert await states(pool) == ["connected", "needs_qr" if shape == "no_token" else "down"]


async def test_a_list_of_which_not_all_can_be_read_makes_nobody_missing(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    evolution.arm("list_shape", shape="nameless", times=None)
    done = await run_once(doctor)
    assert done.aborted == "1 of 1 elements of Evolution's list have no readable name"
    assert (await rows.of("clinic-sol"))["status"] == "connected"


async def test_a_row_that_was_changed_since_it_was_read_is_left_alone(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    evolution.hang_up("clinic-sol")
    await rounds(doctor, 1)
    evolution.arm("slow", operation="connectionState", seconds=0.5)
    late = asyncio.create_task(run_once(doctor))
    await eventually(lambda: evolution.fired.get("slow"))
    await pool.execute("UPDATE healthcare.integrations SET updated_at = now()")
    assert (await late).changed == 0
    assert (await rows.of("clinic-sol"))["status"] == "connected"


# --- alerts ------------------------------------------------------------------------------------


class Pager:
    """Where alerts are posted."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.status = 200
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.posted.append(await request.json())
        return web.Response(status=self.status)


@pytest.fixture
async def pager() -> AsyncIterator[Pager]:
    pager = Pager()
    app = web.Application()
    app.router.add_post("/alerts", pager.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    pager.url = f"http://127.0.0.1:{port}/alerts"
    yield pager
    await runner.cleanup()


async def long_gone(pool: Pool) -> None:
    await pool.execute("UPDATE evosaga.connections SET since = since - interval '1 hour'")


async def test_a_long_disconnection_is_told_once_as_an_event_a_log_line_and_a_message(
    doctor: HealthMonitor,
    evolution: SimulatedEvolution,
    rows: Rows,
    pool: Pool,
    pager: Pager,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = replace(doctor, posts_alerts=True)
    await put(evolution, rows, "clinic-sol", "clinic-mar")
    await rounds(told, 1)
    for name in ("clinic-sol", "clinic-mar"):
        evolution.logout(name)
    await eventually(lambda: evolution.rows()["clinic-mar"].state == "close")
    await rounds(told, 2)
    await long_gone(pool)
    assert (await rounds(told, 1)).alerts == 2
    await rounds(told, 2)
    await deliver(pool, pager)
    [message] = pager.posted
    assert (message["type"], message["count"]) == ("integration.alert", 2)
    assert {one["instance_name"] for one in message["alerts"]} == {"clinic-sol", "clinic-mar"}
    assert {one["state"] for one in message["alerts"]} == {"needs_qr"}
    assert "scan a new QR code" in message["alerts"][0]["cure"]
    alerts = [data for kind, data in await notices(pool) if kind == "integration.alert"]
    assert [(data["state"], data["reason"]) for data in alerts] == [("needs_qr", 401)] * 2
    said = capsys.readouterr().out
    assert said.count("integration disconnected for long") == 2
    for secret in (PHONE, pager.url, *(e.token for e in evolution._world.rows.values())):
        assert secret not in json.dumps(message)
        assert secret not in said


async def test_two_that_check_at_once_alert_of_a_long_disconnection_once(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol", "clinic-mar")
    await rounds(doctor, 1)
    for name in ("clinic-sol", "clinic-mar"):
        evolution.logout(name)
    await eventually(lambda: evolution.rows()["clinic-mar"].state == "close")
    await rounds(doctor, 2)
    now = await pool.fetchval("SELECT now()")
    await long_gone(pool)
    looks = [await look_at(doctor, "default", Thoroughness(eager=True), now) for _ in range(2)]
    acts = await asyncio.gather(
        *(act(doctor, look, now, lambda: True) for look in looks if isinstance(look, ServerLook))
    )
    assert sorted(told for _, _, told in acts) == [0, 2]
    alerted = "SELECT count(*) FROM evosaga.connections WHERE alerted_at IS NOT NULL"
    assert await count(pool, alerted) == 2
    assert [kind for kind, _ in await notices(pool)].count("integration.alert") == 2


async def deliver(pool: Pool, pager: Pager) -> None:
    """Send what is due, as the process that leads the deliveries does."""
    receiver = Receiver(SecretStr(pager.url), alerts=False)
    posting = Posting({PHONES: receiver}, ["a-secret"])
    dispatcher = Dispatcher(pool, cast(Redis, None), "me", posting)
    await dispatcher.round()
    await dispatcher.rest()


async def test_an_alert_that_could_not_be_delivered_is_delivered_later(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool, pager: Pager
) -> None:
    pager.status = 500
    told = replace(doctor, posts_alerts=True)
    await put(evolution, rows, "clinic-sol")
    evolution.logout("clinic-sol")
    await eventually(lambda: evolution.rows()["clinic-sol"].state == "close")
    await rounds(told, 1)
    await long_gone(pool)
    assert (await rounds(told, 1)).alerts == 1
    assert [kind for kind, _ in await notices(pool)].count("integration.alert") == 1
    await deliver(pool, pager)
    await deliver(pool, pager)
    assert len(pager.posted) == 1, "a receiver that failed is left alone for a while"
    pager.status = 200
    await pool.execute("UPDATE evosaga.deliveries SET next_at = now()")
    await deliver(pool, pager)
    await deliver(pool, pager)
    assert [message["count"] for message in pager.posted] == [1, 1]


async def test_what_is_remembered_of_integrations_that_are_gone_is_forgotten(
    doctor: HealthMonitor, evolution: SimulatedEvolution, rows: Rows, pool: Pool
) -> None:
    await put(evolution, rows, "clinic-sol")
    await rounds(doctor, 1)
    assert await states(pool) == ["connected"]
    await pool.execute("DELETE FROM healthcare.integrations")
    await rounds(doctor, 1)
    assert await states(pool) == []
