"""A phone is paired, lost and gone: what the row, the key and the events say of it."""

import asyncio
import json
from typing import Any

import pytest

from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.integrations.connection import (
    ConnectionObservation,
    Integration,
    apply_observation,
    integrations,
    observe,
    status_after,
)
from evosaga.orchestrator.whatsapp.webhooks import throttle
from evosaga.sagas.whatsapp import integration_events
from evosaga.sagas.whatsapp.evolution.models import phone_of
from tests.support.driving import delete, entries, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House

OPEN = {"state": "open", "statusReason": 200}
CLOSE = {"state": "close", "statusReason": 401}


@pytest.fixture
def house(shared_house: House) -> House:
    return shared_house


async def told(house: House, type_: str) -> list[dict[str, Any]]:
    """The events of that type on the stream."""
    events = [
        json.loads(fields[b"data"]) for _, fields in await entries(house.redis, "evosaga:events")
    ]
    return [event for event in events if event["type"] == type_]


async def one(house: House, name: str) -> Integration:
    (integration,) = await integrations(house.pool, names=[name])
    return integration


def calls(evolution: SimulatedEvolution, operation: str) -> int:
    return sum(entry.operation == operation for entry in evolution.journal.entries)


async def test_a_scan_makes_the_integration_connected_and_tells_its_number(house: House) -> None:
    name = await house.integration()
    assert (await house.row(name))["status"] == "pending"
    house.evolution.pair(name, "5511988887777:3")
    row = await house.becomes(name, "connected")
    assert row["whatsapp_number"] == "5511988887777"
    await eventually(lambda: told(house, "integration.connected"))
    (event,) = await told(house, "integration.connected")
    assert event["id"].startswith(f"{row['id']}:notice:")
    assert event["subject"] == str(row["id"])
    assert event["data"] == {
        "integration_id": str(row["id"]),
        "organization_id": str(row["organization_id"]),
        "instance_name": name,
        "status": "connected",
        "before": "pending",
    }
    assert "5511988887777" not in json.dumps(event), "a phone number is nobody's business"
    key = json.loads(await house.redis.get(f"whatsapp:instance:{name}") or b"")
    assert key["whatsapp_number"] == "5511988887777"
    assert await house.redis.exists(f"evosaga:qr:{name}") == 0


async def test_a_lid_is_no_phone_number_and_gets_into_no_row_and_no_key(house: House) -> None:
    name = await house.integration()
    house.evolution.pair(name, "998877665544332211@lid")
    row = await house.becomes(name, "connected")
    assert row["whatsapp_number"] is None
    key = json.loads(await house.redis.get(f"whatsapp:instance:{name}") or b"{}")
    assert key.get("whatsapp_number") is None


async def test_a_log_out_makes_it_disconnected_and_another_phone_connected_again(
    house: House,
) -> None:
    name = await house.integration()
    house.evolution.pair(name, "5511911111111")
    await house.becomes(name, "connected")
    house.evolution.logout(name, 401)
    row = await house.becomes(name, "disconnected")
    assert row["whatsapp_number"] == "5511911111111", "who it was is kept"
    await eventually(lambda: told(house, "integration.disconnected"))
    (event,) = await told(house, "integration.disconnected")
    assert event["data"]["reason"] == 401
    token = house.parts.services.keys.instance_token(row["id"], house.parts.services.keys.current)
    await house.parts.services.servers["default"].connect(name, token, None)
    await eventually(lambda: house.evolution.live()[name].state == "connecting")
    await eventually(lambda: house.evolution._world.memory[name].code)
    house.evolution.pair(name, "5511922222222")
    row = await house.becomes(name, "connected")
    assert row["whatsapp_number"] == "5511922222222"


async def test_a_passing_loss_that_evolution_heals_itself_changes_nothing(house: House) -> None:
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    await house.all_applied()
    house.evolution.logout(name, 515)
    await eventually(lambda: house.evolution.live()[name].state == "open")
    await house.all_applied()
    assert (await house.row(name))["status"] == "connected"
    assert await told(house, "integration.disconnected") == []


async def test_an_open_that_is_no_pairing_is_not_believed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evolution 2.3.0 shows new instances as connected, and anybody's hint may be wrong."""
    monkeypatch.setattr(throttle, "_TRIES", 2)
    name = await house.integration()
    await house.deliver(name, data=OPEN | {"wuid": "5511900000000@s.whatsapp.net"}, at="2030-01-01")
    house.evolution._world.memory[name].state = "open"
    await house.all_applied()
    assert (await house.row(name))["status"] == "pending"
    assert (await house.row(name))["whatsapp_number"] is None


class TestW4Order:
    @pytest.mark.fault("w4")
    async def test_however_the_events_are_shuffled_the_row_says_what_is_true(
        self, house: House
    ) -> None:
        name = await house.integration()
        house.evolution.pair(name)
        await house.becomes(name, "connected")
        for at in ("09", "02", "05", "01", "07"):
            for data in (CLOSE, OPEN):
                await house.deliver(name, data=data, at=f"2031-01-{at}T00:00:00.000Z")
        await house.all_applied()
        assert (await house.row(name))["status"] == "connected"
        assert await told(house, "integration.disconnected") == []

    @pytest.mark.fault("w4")
    async def test_a_slow_look_does_not_overwrite_what_a_later_one_found(
        self, house: House
    ) -> None:
        name = await house.integration()
        early = await one(house, name)
        house.evolution.pair(name)
        await house.becomes(name, "connected")
        assert (
            await apply_observation(
                house.pool, early, ConnectionObservation("open", "5511900000000", recorded=True)
            )
            == "lost"
        )
        late = await one(house, name)
        assert (
            await apply_observation(house.pool, late, ConnectionObservation("close", reason=401))
            == "changed"
        )
        assert (
            await apply_observation(house.pool, late, ConnectionObservation("close", reason=401))
            == "lost"
        )


@pytest.mark.fault("w15")
async def test_a_close_while_it_is_being_deleted_is_no_reason_to_do_anything(
    house: House,
) -> None:
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    await house.pool.execute("UPDATE healthcare.integrations SET status = 'deleting'")
    before = calls(house.evolution, "connect"), calls(house.evolution, "restart")
    house.evolution.logout(name, 401)
    await eventually(lambda: house.stored(name))
    await house.deliver(name, data=OPEN, at="2031-01-01T00:00:00.000Z")
    await house.all_applied()
    assert (await house.row(name))["status"] == "deleting"
    assert (calls(house.evolution, "connect"), calls(house.evolution, "restart")) == before
    assert await told(house, "integration.disconnected") == []


@pytest.mark.fault("w15")
async def test_a_whole_delete_with_its_log_out_leaves_nothing_behind(house: House) -> None:
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    command = delete(name)
    await publish(house.redis, command)
    assert (await outcome(house.pool, command["id"], 30)).status == "completed"
    await house.all_applied()
    assert await house.row(name) == {}
    assert name not in house.evolution.live()
    assert await told(house, "integration.disconnected") == []


@pytest.mark.fault("w13")
async def test_a_look_finds_out_what_no_webhook_has_told(house: House) -> None:
    name = await house.integration()
    house.evolution.arm("webhook_lost", times=None)
    house.evolution.pair(name, "5511966665555")
    services = house.parts.services

    async def looked() -> bool:
        integration = await one(house, name)
        seen = await observe(services.servers["default"], services.keys, integration)
        await apply_observation(house.pool, integration, seen)
        return bool((await house.row(name))["status"] == "connected")

    await eventually(looked)
    row = await house.row(name)
    assert (row["status"], row["whatsapp_number"]) == ("connected", "5511966665555")


@pytest.mark.parametrize("storm", [150, pytest.param(600, marks=pytest.mark.long)])
async def test_a_storm_comes_to_a_handful_of_looks_and_one_write(house: House, storm: int) -> None:
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    await house.all_applied()
    looks, stored = calls(house.evolution, "connectionState"), len(await house.stored(name))
    version = (await house.row(name))["updated_at"]
    at = (f"2031-01-01T00:00:00.{n:03}Z" for n in range(storm))

    async def hammer() -> None:
        for moment in at:
            answer = await house.deliver(name, data={"state": "connecting"}, at=moment)
            assert answer.status_code == 200

    await asyncio.gather(*(hammer() for _ in range(4)))
    await house.all_applied()
    assert calls(house.evolution, "connectionState") - looks <= 10
    assert len(await house.stored(name)) - stored <= 30
    assert (await house.row(name))["updated_at"] == version
    assert (await house.row(name))["status"] == "connected"


async def test_what_is_told_over_and_over_is_looked_at_ever_more_seldom(house: House) -> None:
    """Several receivers can't see each other's repetitions; who applies them can."""
    name = await house.integration(channel="EVOLUTION")
    await house.deliver(name, data=OPEN)
    await house.becomes(name, "connected")

    async def put_off(digest: str) -> bool:
        """Whether the hint was applied or put off for seconds; a look lends itself thirty."""
        row = await house.pool.fetchrow(
            "SELECT applied_at, extract(epoch FROM due_at - received_at) AS later "
            "FROM evosaga.webhooks WHERE digest = $1",
            digest,
        )
        assert row is not None
        later.append(float(row["later"]))
        return row["applied_at"] is not None or 1 < later[-1] < 20

    for n in range(12):
        later: list[float] = []
        await house.pool.execute(
            "INSERT INTO evosaga.webhooks (digest, integration_id, instance_name, event, state, "
            "told_at) SELECT $1, integration_id, instance_name, event, 'connecting', told_at "
            "FROM evosaga.webhooks WHERE instance_name = $2 LIMIT 1",
            f"again-{n}",
            name,
        )
        await eventually(lambda n=n: put_off(f"again-{n}"))  # type: ignore[misc]
        if 1 < later[-1] < 20:
            break
    else:
        raise AssertionError("every single one was looked at")
    assert n >= 2, "and yet the first ones were looked at without delay"


async def test_a_hot_loop_of_evolution_is_no_disconnection(house: House) -> None:
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    looks = calls(house.evolution, "connectionState")
    house.evolution.whatsapp(reachable=False)
    await asyncio.sleep(1.5)  # a storm has to blow for a while
    assert calls(house.evolution, "connectionState") - looks <= 12
    house.evolution.whatsapp(reachable=True)
    await eventually(lambda: house.evolution.live()[name].state == "open")
    await house.becomes(name, "connected")
    await house.all_applied()
    assert await told(house, "integration.disconnected") == []


@pytest.mark.fault("f1")
async def test_the_key_and_the_event_follow_when_redis_is_back(house: House) -> None:
    """What a look found is committed; what Redis is to know of it is owed until it does."""
    name = await house.integration()
    await house.redis.config_set("maxmemory", 1)
    try:
        house.evolution.pair(name, "5511955554444")
        await house.becomes(name, "connected")
    finally:
        await house.redis.config_set("maxmemory", 0)
    await eventually(lambda: told(house, "integration.connected"))
    key = json.loads(await house.redis.get(f"whatsapp:instance:{name}") or b"")
    assert key["whatsapp_number"] == "5511955554444"


async def test_a_qr_code_is_told_without_itself(house: House) -> None:
    name = await house.integration()
    await eventually(lambda: told(house, "integration.qr_updated"))
    event = (await told(house, "integration.qr_updated"))[0]
    assert event["data"]["available"] is True
    assert "2@" not in json.dumps(event)
    shown = json.loads(await house.redis.get(f"evosaga:qr:{name}") or b"")
    assert shown["code"].startswith("2@")
    story = await integration_events.story(house.pool, (await house.row(name))["id"])
    assert {it.notice.type for it in story} == {"integration.qr_updated"}


async def test_an_older_integration_is_looked_at_with_the_token_that_evolution_lists(
    house: House,
) -> None:
    house.evolution.foreign("clinic-of-old", integration="WHATSAPP-BAILEYS")
    organization = "4e8ddba1-ad52-4613-9a03-ec64636b3f6c"
    saved = await house.pool.fetchval(
        "SELECT healthcare.save_evolution_integration($1, 'clinic-of-old')", organization
    )
    token = json.loads(saved)["webhook_token"]
    instance = house.evolution._world.memory["clinic-of-old"]
    instance.state = "open"
    row = house.evolution._world.rows["clinic-of-old"]
    row.connection_status, row.owner_jid = "open", "5511944443333@s.whatsapp.net"
    await house.deliver("clinic-of-old", data=OPEN, token=token)
    await house.becomes("clinic-of-old", "connected")
    assert (await house.row("clinic-of-old"))["whatsapp_number"] == "5511944443333"


class TestTheJudgement:
    """Pure: what the row should say after a look."""

    @pytest.mark.parametrize(
        ("status", "seen", "after"),
        [
            ("pending", ConnectionObservation("open", "55119", recorded=True), "connected"),
            ("pending", ConnectionObservation("open", "55119", recorded=False), "pending"),
            ("pending", ConnectionObservation("open", None, recorded=True), "pending"),
            ("pending", ConnectionObservation("close"), "pending"),
            ("pending", ConnectionObservation("connecting"), "pending"),
            ("connected", ConnectionObservation("connecting"), "connected"),
            ("connected", ConnectionObservation("close"), "disconnected"),
            ("connected", ConnectionObservation("close", "55119", recorded=True), "connected"),
            ("connected", ConnectionObservation("absent"), "connected"),
            ("connected", ConnectionObservation("unknown"), "connected"),
            ("disconnected", ConnectionObservation("open", "55119", recorded=True), "connected"),
            ("disconnected", ConnectionObservation("close"), "disconnected"),
            ("deleting", ConnectionObservation("open", "55119", recorded=True), "deleting"),
            ("deleting", ConnectionObservation("close"), "deleting"),
        ],
    )
    def test_moves_only_on_what_is_certain(
        self, status: str, seen: ConnectionObservation, after: str
    ) -> None:
        assert status_after(integration(status), seen)[0] == after

    def test_a_channel_without_a_phone_is_connected_while_it_is_open(self) -> None:
        assert (
            status_after(integration("pending", "EVOLUTION"), ConnectionObservation("open"))[0]
            == "connected"
        )
        seen = ConnectionObservation("close", recorded=True)  # its database does not notice
        assert status_after(integration("connected", "EVOLUTION"), seen)[0] == "disconnected"

    @pytest.mark.parametrize(
        ("jid", "number"),
        [
            ("5511999990000@s.whatsapp.net", "5511999990000"),
            ("5511999990000:12@s.whatsapp.net", "5511999990000"),
            ("", None),
            (None, None),
            ("not-a-number@lid", None),
            ("998877665544332211@lid", None),
            ("5511999990000@c.us", "5511999990000"),
            ("120363021234567890@g.us", None),
            (["5511999990000"], None),
        ],
    )
    def test_a_number_is_that_of_a_phone_and_never_a_lid(
        self, jid: Any, number: str | None
    ) -> None:
        assert phone_of(jid) == number


def integration(status: str, channel: str = "WHATSAPP-BAILEYS") -> Integration:
    from datetime import UTC, datetime
    from uuid import UUID

    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Integration(UUID(int=1), UUID(int=2), "ours", channel, status, None, at)
