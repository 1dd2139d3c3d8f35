"""Instances that are there and tell nobody: named, mended by a saga, seen by health and doctor."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, examine
from evosaga.orchestrator.whatsapp.health.monitor import run_once as check_health
from evosaga.orchestrator.whatsapp.reconciliation import incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import (
    OFTEN,
    Reconciler,
    find,
    run_once,
)
from evosaga.sagas.whatsapp.services import Services
from tests.conftest import API_KEY
from tests.support.commandline import Evosaga
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.reconciliation.conftest import Rows

PUBLIC = "http://192.0.2.1:9"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "public_url": PUBLIC,
            "webhook_hosts": frozenset({"elsewhere.example"}),
            "health_every": 0.0,
            "orphans_every": 0.0,
            "reconcile_every": 0.0,
        }
    )


@pytest.fixture
async def evolution() -> AsyncIterator[SimulatedEvolution]:
    async with SimulatedEvolution(api_key=API_KEY, pace=0.05, webhook_attempts=1) as server:
        yield server


async def made(pool: Pool, redis: Redis, **data: Any) -> SagaView:
    saga = await outcome(pool, await publish(redis, create(**data)))
    assert saga.status == "completed"
    assert saga.instance_name
    return saga


def name_of(saga: SagaView) -> str:
    assert saga.instance_name
    return saga.instance_name


def webhook(evolution: SimulatedEvolution, name: str) -> Any:
    return evolution._world.rows[name].webhook


def spoil(evolution: SimulatedEvolution, name: str, how: str) -> None:
    match how:
        case "no webhook":
            evolution.lose(name, "webhook")
        case "no settings":
            evolution.lose(name, "settings")
        case "neither":
            evolution.lose(name, "webhook")
            evolution.lose(name, "settings")
        case "another address":
            evolution.set_webhook(name, url="https://somewhere.example/else")
        case "switched off":
            evolution.set_webhook(name, enabled=False)
        case "too few events":
            evolution.set_webhook(name, events=["CONNECTION_UPDATE"])
        case "an event that holds up removals":
            told = [*webhook(evolution, name)["events"], "REMOVE_INSTANCE"]
            evolution.set_webhook(name, events=told)
        case "no token":
            evolution.set_webhook(name, headers=None)
        case "another token":
            evolution.set_webhook(name, headers={"X-Webhook-Token": "f" * 64})
        case _:
            raise ValueError(how)


SPOILT = {
    "no webhook": ("webhook_missing", "it has no webhook"),
    "no settings": ("settings_missing", "it has no settings"),
    "neither": ("webhook_missing", "it has no webhook and it has no settings"),
    "another address": ("webhook_wrong", "its webhook leads elsewhere"),
    "switched off": ("webhook_wrong", "its webhook is switched off"),
    "too few events": ("webhook_wrong", "its webhook is not told of"),
    "an event that holds up removals": ("webhook_wrong", "REMOVE_INSTANCE"),
    "no token": ("webhook_wrong", "shows no token"),
    "another token": ("webhook_wrong", "or another one"),
}


async def test_an_instance_that_tells_nobody_is_named_and_mended(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    keeper: Reconciler,
    evolution: SimulatedEvolution,
    subtests: pytest.Subtests,
) -> None:
    async with running_worker(settings):
        name = name_of(await made(pool, redis))
        await made(pool, redis)
        before = dict(webhook(evolution, name))
        assert (await find(keeper)).drifts == []
        for how, (code, words) in SPOILT.items():
            with subtests.test(how):
                spoil(evolution, name, how)
                [drift] = (await run_once(keeper)).drifts
                assert (drift.what, drift.where, drift.policy) == (code, name, "auto")
                assert words in drift.cause
                done = await run_once(keeper)
                [asked] = done.repairs
                assert (await outcome(pool, str(asked.saga_id))).status == "completed"
                assert (await run_once(keeper)).drifts == []
                after = webhook(evolution, name)
                same = ("url", "enabled", "headers")
                assert [after[it] for it in same] == [before[it] for it in same]
                assert set(after["events"]) == set(before["events"])
                assert evolution.rows()[name].settings
    sets = evolution.journal.requests("webhook_set") + evolution.journal.requests("settings_set")
    assert {(e.name, e.key_kind) for e in sets} == {(name, "instance")}


async def test_the_webhook_of_a_command_is_what_it_is_compared_with(
    settings: Settings, pool: Pool, redis: Redis, keeper: Reconciler, evolution: SimulatedEvolution
) -> None:
    url = "https://elsewhere.example/hook"
    async with running_worker(settings):
        name = name_of(await made(pool, redis, webhook_url=url))
        evolution.set_webhook(name, headers={"Authorization": "Bearer theirs"})
        assert (await find(keeper)).drifts == [], "headers of theirs are theirs"
        evolution.set_webhook(name, url=f"{PUBLIC}/webhooks/evolution/{name}")
        await run_once(keeper)
        [asked] = (await run_once(keeper)).repairs
        assert (await outcome(pool, str(asked.saga_id))).status == "completed"
    assert webhook(evolution, name)["url"] == url
    assert webhook(evolution, name)["headers"] == {"Authorization": "Bearer theirs"}


async def test_what_is_not_ours_keeps_its_webhook_or_none(
    pool: Pool, rows: Rows, keeper: Reconciler, evolution: SimulatedEvolution
) -> None:
    """Older code's instances and strangers' have no birthmark, so nobody knows what is right."""
    evolution.put("older-1", phone="5511987654321")
    await rows.insert("older-1", number="5511987654321")
    evolution.put("a-stranger")
    assert (await find(keeper)).drifts == []
    assert evolution.journal.requests("webhook_find") == []


async def test_an_answer_that_says_nothing_makes_no_drift(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    keeper: Reconciler,
    evolution: SimulatedEvolution,
) -> None:
    async with running_worker(settings):
        await made(pool, redis)
    for status in (500, 503):
        evolution.disarm()
        evolution.arm("5xx_before", operation="webhook_find", status=status, times=None)
        assert (await find(keeper)).drifts == []
    assert evolution.fired["5xx_before"] >= 2


async def test_between_two_looks_at_everything_only_those_are_asked_for_that_were_seen_to_lack_it(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    keeper: Reconciler,
    doctor: HealthMonitor,
    evolution: SimulatedEvolution,
) -> None:
    async with running_worker(settings):
        names = [name_of(await made(pool, redis)) for _ in range(3)]
        await check_health(doctor)  # all are new, so all are asked
        asked = len(evolution.journal.requests("webhook_find"))
        assert (await run_once(keeper, kinds=OFTEN)).drifts == []
        assert len(evolution.journal.requests("webhook_find")) == asked
        evolution.lose(names[1], "webhook")
        await check_health(doctor)
        assert await states(pool) == {names[1]: "incomplete"}
        [drift] = (await run_once(keeper, kinds=OFTEN)).drifts
        assert (drift.what, drift.where) == ("webhook_missing", names[1])
        [repair] = (await run_once(keeper, kinds=OFTEN)).repairs
        assert (await outcome(pool, str(repair.saga_id))).status == "completed"
        await check_health(doctor)
        assert await states(pool) == {}
        assert (await run_once(keeper, kinds=OFTEN)).drifts == []


async def states(pool: Pool) -> dict[str, str]:
    """Who is not well, as the health check remembers it."""
    rows = await pool.fetch(
        "SELECT config ->> 'instance_name' AS name, state FROM evosaga.connections "
        "JOIN healthcare.integrations ON id = integration_id WHERE state <> 'connected'"
    )
    return {row["name"]: row["state"] for row in rows}


async def test_a_round_of_the_schedule_asks_for_a_share_and_each_has_its_turn(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    keeper: Reconciler,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incomplete_instances, "SHARE", 2)
    async with running_worker(settings):
        names = [name_of(await made(pool, redis)) for _ in range(5)]
    await run_once(keeper)
    assert len(evolution.journal.requests("webhook_find")) == 2
    await pool.execute(
        "INSERT INTO evosaga.connections (integration_id, state, checked_at) "
        "SELECT id, 'connected', now() FROM healthcare.integrations "
        "WHERE config ->> 'instance_name' <> $1 "
        "ON CONFLICT (integration_id) DO UPDATE SET checked_at = now()",
        names[3],
    )
    evolution.lose(names[3], "webhook")
    assert [d.where for d in (await run_once(keeper)).drifts] == [names[3]], "the longest unasked"
    assert [d.where for d in (await run_once(keeper)).drifts] == [names[3]], "and seen ones first"
    assert len(evolution.journal.requests("webhook_find")) == 6


async def test_a_row_stays_connected_while_its_webhook_is_lost_and_somebody_is_told(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    rows: Rows,
    outside: Services,
    evolution: SimulatedEvolution,
) -> None:
    doctor = HealthMonitor(pool, outside, alert_after=0.001)
    async with running_worker(settings):
        name = name_of(await made(pool, redis))
    await check_health(doctor)
    assert (await rows.of(name))["status"] == "connected"
    evolution.lose(name, "webhook")
    for _ in range(2):
        await check_health(doctor)
    done = await check_health(doctor)
    assert (await rows.of(name))["status"] == "connected"
    [patient] = (await examine(doctor)).patients
    assert patient.judgement is not None
    assert patient.judgement.record.state == "incomplete"
    assert done.summary()["states"] == {"incomplete": 1}
    alerts = "SELECT count(*) FROM evosaga.notices WHERE type = 'integration.alert'"
    assert await pool.fetchval(alerts) == 1
    evolution.set_webhook(name, enabled=True)
    ended = "SELECT count(*) FROM evosaga.notices WHERE type = 'integration.disconnected'"
    assert await pool.fetchval(ended) == 0


async def test_reconcile_health_and_doctor_name_it_and_fix_mends_it(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    evosaga: Evosaga,
) -> None:
    async with running_worker(settings):
        name = name_of(await made(pool, redis))
        assert (await evosaga("health", "--fix")).code == 0
        assert (await evosaga("reconcile")).code == 0
        evolution.lose(name, "webhook")
        seen = await evosaga("reconcile")
        assert seen.code == 1
        assert "webhook_missing" in seen.out
        ill = await evosaga("health")
        assert ill.code == 1
        assert "incomplete" in ill.out
        told = await evosaga("doctor")
        assert "1 of 1 looked at" in told.out
        assert "evosaga reconcile --fix" in told.out
        fixed = await evosaga("reconcile", "--fix")
        assert fixed.code == 0, fixed.out
        assert "webhook_missing" in fixed.out
        assert (await evosaga("health")).code == 0
    assert webhook(evolution, name)["enabled"] is True


async def test_an_instance_that_gets_its_row_again_gets_its_webhook_again_as_well(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    rows: Rows,
    evolution: SimulatedEvolution,
    evosaga: Evosaga,
) -> None:
    public = evosaga.having(public_url=PUBLIC)
    async with running_worker(settings):
        saga = await made(pool, redis, channel="WHATSAPP-BAILEYS")
        name = name_of(saga)
        evolution.pair(name)
        await pool.execute("DELETE FROM healthcare.integrations")
        evolution.lose(name, "webhook")
        organization = str(saga.organization_id)
        done = await public("reconcile", "--organization-id", organization, "--fix")
        assert "row_gone" in done.out, done.out + done.err
        assert (await rows.of(name))["config"]

        async def mended() -> bool:
            return webhook(evolution, name) is not None

        await eventually(mended, 15)
    assert webhook(evolution, name)["url"] == f"{PUBLIC}/webhooks/evolution/{name}"
