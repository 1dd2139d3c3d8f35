"""Reconciling on real servers: what drifted is seen twice, repaired by a saga, and stays right."""

import asyncio
import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, SagaView, list_sagas
from evosaga.orchestrator.routing import ClinicCache
from evosaga.orchestrator.whatsapp.reconciliation import confirmations
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import (
    ORPHANS,
    Reconciler,
    ReconcileReport,
    find,
    run_once,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key
from tests.conftest import API_KEY, SECRET
from tests.support.driving import count, create, delete, outcome, publish, story
from tests.support.waiting import eventually
from tests.whatsapp.reconciliation.conftest import Rows

PHONE = "5511987654321"
REPAIRS = ("remove-orphan", "correct-integration", "adopt-instance", "drop-key")


async def made(pool: Pool, redis: Redis, **data: Any) -> SagaView:
    """An integration of ours, made by a worker that must be running."""
    saga = await outcome(pool, await publish(redis, create(**data)))
    assert saga.status == "completed"
    assert saga.instance_name
    return saga


async def healed(keeper: Reconciler) -> ReconcileReport:
    """Two looks; what the second one asks for is waited for."""
    while (await run_once(keeper)).aborted:
        pass  # a server that has just started cuts connections that were kept open
    done = await run_once(keeper)
    for asked in done.repairs:
        await outcome(keeper.pool, str(asked.saga_id))
    await run_once(keeper)
    return done


async def repairs(pool: Pool) -> list[SagaView]:
    sagas, _ = await list_sagas(pool, Filter(), limit=100)
    return [saga for saga in sagas if saga.saga in REPAIRS]


def strangers_are_safe(evolution: SimulatedEvolution) -> None:
    """S8: every removal that landed was asked for with the instance's own token."""
    removed = [e for e in evolution.journal if e.applied == "removed" and e.caused_by is not None]
    assert all(entry.key_kind == "instance" for entry in removed)
    assert all(e.key_kind != "global" for e in evolution.journal.requests("delete"))


async def resurrected(
    pool: Pool, redis: Redis, evolution: SimulatedEvolution, **data: Any
) -> SagaView:
    """C18: an integration that was deleted, and came back with a backup of Evolution's database."""
    saga = await made(pool, redis, **data)
    evolution.snapshot()
    gone = await outcome(pool, await publish(redis, delete(str(saga.instance_name))))
    assert gone.status == "completed"
    await evolution.restore()
    assert list(evolution.live()) == [saga.instance_name]
    return saga


async def test_nothing_is_found_where_the_stores_agree(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        await made(pool, redis, channel="WHATSAPP-BAILEYS")
        saga = await made(pool, redis, channel="WHATSAPP-BAILEYS", instance_name="of-our-own")
        await eventually(lambda: evolution.live()["of-our-own"].state == "connecting")
        evolution.pair("of-our-own", PHONE)
        await pool.execute(
            "UPDATE healthcare.integrations SET status = 'connected', whatsapp_number = $1 "
            "WHERE id = $2",
            PHONE,
            saga.saga_id,
        )
        await eventually(lambda: evolution.rows()["of-our-own"].state == "open")
        evolution.put("somebody-elses", phone="5511900000000")
        assert (await find(keeper)).drifts == []
    asked = len(evolution.journal.requests("connectionState"))
    looks = len(evolution.journal.requests("fetch"))
    found = await find(keeper)
    assert (found.drifts, found.strangers) == ([], ["somebody-elses"])
    assert len(evolution.journal.requests("connectionState")) == asked + 2, "each row's by name"
    assert len(evolution.journal.requests("fetch")) == looks + 1, "one list call"
    assert (await find(keeper, kinds=ORPHANS)).drifts == []
    assert len(evolution.journal.requests("connectionState")) == asked + 2, "only by the list"


@pytest.mark.fault("n1", "c18")
async def test_an_orphan_of_ours_is_removed_after_two_looks(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await resurrected(pool, redis, evolution)
        first = await run_once(keeper)
        assert [drift.what for drift in first.drifts] == ["orphan"]
        assert not first.repairs, "one look is not enough"
        assert first.waiting == 1
        second = await run_once(keeper)
        repair = await outcome(pool, str(second.repairs[0].saga_id))
        assert (repair.saga, repair.status) == ("remove-orphan", "completed")
        assert not evolution.live()
        assert not evolution.rows()
        assert (await find(keeper)).drifts == []
    strangers_are_safe(evolution)
    assert repair.instance_name == saga.instance_name
    assert "saga.completed" in await story(pool, repair)


@pytest.mark.fault("n1")
async def test_no_orphan_is_repaired_before_the_grace_time_is_over(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    patient = replace(keeper, quiet=3600.0)
    async with running_worker(settings):
        await resurrected(pool, redis, evolution)
        for _ in range(3):
            done = await run_once(patient)
            assert (len(done.drifts), len(done.repairs), done.waiting) == (1, 0, 1)
        await pool.execute(
            "UPDATE evosaga.sightings SET first_seen = first_seen - interval '1 hour'"
        )
        assert len((await run_once(patient)).repairs) == 1


@pytest.mark.fault("n1")
async def test_what_is_not_seen_again_is_forgotten(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await resurrected(pool, redis, evolution)
        await run_once(keeper)
        evolution.drop(str(saga.instance_name))
        await run_once(keeper)
        assert await count(pool, "SELECT count(*) FROM evosaga.sightings") == 0
        assert not await repairs(pool)


@pytest.mark.fault("n1")
async def test_the_worker_itself_removes_orphans_within_two_periods(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    often = settings.model_copy(update={"orphans_every": 0.5, "quiet_seconds": 0.2})
    async with running_worker(often):
        await resurrected(pool, redis, evolution)
        await eventually(lambda: not evolution.rows(), 20, message="the orphan to go")
        # The chore's result is there for the dashboard.
        await eventually(lambda: chore_says(pool, "orphans", "drifts", 0), 20)
    strangers_are_safe(evolution)


async def chore_says(pool: Pool, name: str, field: str, value: Any) -> bool:
    told = await pool.fetchval("SELECT last_result FROM evosaga.chores WHERE name = $1", name)
    return told is not None and json.loads(told).get(field) == value


@pytest.mark.fault("n2")
async def test_a_name_that_a_saga_is_at_work_for_is_left_alone(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow_after", operation="create", seconds=1.5)
    async with running_worker(settings):
        command = create()
        await publish(redis, command)
        await eventually(lambda: bool(evolution.live()), message="the instance, without a row yet")
        first, second = await run_once(keeper), await run_once(keeper)
        assert (first.drifts, second.drifts) == ([], [])
        assert (await outcome(pool, command["id"])).status == "completed"
    assert len(evolution.live()) == 1


@pytest.mark.fault("n2")
async def test_a_name_that_a_saga_takes_between_the_look_and_the_repair_is_left_alone(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    name = "a-name-people-chose"
    async with running_worker(settings):
        await resurrected(pool, redis, evolution, instance_name=name)
        await run_once(keeper)
        kept = keeper.gate.submit

        async def late(command: Any) -> Any:
            """Somebody wants the name right before the repair is accepted."""
            evolution.drop(name)
            evolution.arm("slow_after", operation="create", seconds=1.0)
            await publish(redis, create(instance_name=name))
            await eventually(lambda: bool(evolution.live()))
            return await kept(command)

        gate = Interposed(late)
        done = await run_once(replace(keeper, gate=gate))  # type: ignore[arg-type]
        assert [asked.kind for asked in done.repairs] == ["rejected"]
        creates, _ = await list_sagas(pool, Filter(saga="create-integration", instance_name=name))
        assert (await outcome(pool, str(creates[0].saga_id))).status == "completed"
        assert list(evolution.live()) == [name]
        assert (await find(keeper)).drifts == []


class Interposed:
    """A gate that lets something happen just before it opens."""

    def __init__(self, submit: Any) -> None:
        self.submit = submit


@pytest.mark.fault("n3")
async def test_a_strangers_instance_is_told_of_when_it_bears_a_name_of_ours_and_never_touched(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        name = str(saga.instance_name)
        await outcome(pool, await publish(redis, delete(name)))
        evolution.foreign(name)
        evolution.foreign("no-business-of-ours")
        drifts = (await healed(keeper)).drifts
        assert [(d.what, d.where, d.policy) for d in drifts] == [("impostor", name, "never")]
        removals = len(evolution.journal.requests("delete", name))
        await find(keeper, keep=Keep(saga.organization_id or uuid.uuid4(), "none"))
        assert len(evolution.journal.requests("delete", name)) == removals
    assert set(evolution.live()) == {name, "no-business-of-ours"}
    assert not await repairs(pool)


@pytest.mark.fault("e6")
async def test_what_carries_our_token_and_is_not_in_the_log_is_told_of_and_not_deleted(
    keeper: Reconciler, evolution: SimulatedEvolution, pool: Pool
) -> None:
    lost, keys = uuid.uuid4(), KeyRing([SECRET])
    evolution.put(f"wa-{lost}", token=keys.instance_token(lost, keys.current), phone=PHONE)
    drifts = (await healed(keeper)).drifts
    assert [(drift.what, drift.policy) for drift in drifts] == [("unrecorded", "ask")]
    assert list(evolution.live()) == [f"wa-{lost}"]
    assert not await repairs(pool)


@pytest.mark.fault("d9")
async def test_a_row_whose_instance_was_removed_by_hand_is_flagged_and_not_made_again(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        evolution.drop(str(saga.instance_name))
        done = await healed(keeper)
        assert [drift.what for drift in done.drifts] == ["missing"]
        row = await rows.of(str(saga.instance_name))
        assert (row["status"], row["id"]) == ("disconnected", saga.saga_id)
        left = (await find(keeper)).drifts
        assert [(d.what, d.policy) for d in left] == [("still_missing", "never")]
        assert not evolution.rows()
    told = await pool.fetch("SELECT type, data FROM evosaga.notices")
    assert [r["type"] for r in told] == ["integration.disconnected"]
    assert json.loads(told[0]["data"])["state"] == "missing"


@pytest.mark.fault("l4")
async def test_an_instance_that_comes_back_takes_the_flag_away(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        evolution.snapshot()
        evolution.drop(str(saga.instance_name))
        await healed(keeper)
        await evolution.restore()
        done = await healed(keeper)
        assert [drift.what for drift in done.drifts] == ["wrong_status"]
        assert (await rows.of(str(saga.instance_name)))["status"] == "connected"
        assert (await find(keeper)).drifts == []


@pytest.mark.fault("n4")
async def test_a_list_that_is_not_to_be_believed_changes_nothing(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    subtests: pytest.Subtests,
) -> None:
    async with running_worker(settings):
        for _ in range(8):
            await made(pool, redis)
        await healed(keeper)
        before = await pool.fetch("SELECT id, status FROM healthcare.integrations ORDER BY id")
        for mode in ("list_empty", "list_partial"):
            with subtests.test(mode):
                evolution.arm(mode, operation="fetch", times=None)
                for _ in range(2):
                    done = await run_once(keeper)
                    assert done.aborted is not None
                    assert "not to be believed" in done.aborted
                with pytest.raises(ObservationFailed, match="not to be believed"):
                    await find(keeper)
                evolution.disarm()
                assert (await find(keeper)).drifts == []
                query = "SELECT id, status FROM healthcare.integrations ORDER BY id"
                assert await pool.fetch(query) == before
    assert len(evolution.live()) == 8


@pytest.mark.fault("n4")
async def test_when_each_of_many_is_really_gone_the_list_is_believed(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    async with running_worker(settings):
        for _ in range(5):
            await made(pool, redis)
        for name in list(evolution.live()):
            evolution.drop(name)
        done = await healed(keeper)
        assert [drift.what for drift in done.drifts] == ["missing"] * 5
        assert [drift.what for drift in (await find(keeper)).drifts] == ["still_missing"] * 5


@pytest.mark.fault("n4")
async def test_without_a_list_nothing_is_concluded(
    keeper: Reconciler,
    outside: Services,
    evolution: SimulatedEvolution,
    rows: Rows,
    subtests: pytest.Subtests,
) -> None:
    await rows.insert("older-code-made-this")
    more: dict[str, dict[str, Any]] = {
        "wrong_body": {"body": {"not": "a list"}},
        "huge": {"size": 70_000_000},
    }
    for mode in ("5xx_before", "trunc", "huge", "wrong_body", "401", "hang_before", "db_down"):
        seconds = 0.5 if mode == "hang_before" else 5.0
        async with EvolutionApi(evolution.url, API_KEY, timeout=seconds) as api:
            with subtests.test(mode):
                evolution.arm(mode, operation="fetch", times=None, **more.get(mode, {}))
                looking = replace(keeper, services=replace(outside, servers={"default": api}))
                done = await asyncio.wait_for(run_once(looking), 60)
                assert done.aborted
                assert not done.drifts
                assert (await rows.of("older-code-made-this"))["status"] == "connected"
        evolution.disarm()


@pytest.mark.fault("n5")
async def test_two_who_reconcile_at_once_repair_a_thing_once(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await resurrected(pool, redis, evolution)
        removed = len(evolution.journal.requests("delete"))
        await run_once(keeper)
        rounds = await asyncio.gather(*(run_once(keeper) for _ in range(4)))
        for done in rounds:
            for asked in done.repairs:
                await outcome(pool, str(asked.saga_id))
        assert [r.instance_name for r in await repairs(pool)] == [saga.instance_name]
        assert not evolution.rows()
    assert len(evolution.journal.requests("delete")) == removed + 1


@pytest.mark.fault("n5")
async def test_one_who_was_killed_after_asking_does_not_ask_again(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_worker(settings):
        await resurrected(pool, redis, evolution)
        await run_once(keeper)

        async def killed(*_: Any) -> None:
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(confirmations, "repaired", killed)
            with pytest.raises(asyncio.CancelledError):
                await run_once(keeper)
        done = await run_once(keeper)
        assert {asked.kind for asked in done.repairs} <= {"duplicate"}
        [repair] = await repairs(pool)
        assert (await outcome(pool, str(repair.saga_id))).status == "completed"


@pytest.mark.fault("n6")
async def test_a_stranger_who_takes_the_name_before_the_delete_keeps_it(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    name = "a-name-people-chose"
    async with running_worker(settings):
        await resurrected(pool, redis, evolution, instance_name=name)
        evolution.arm("foreign", operation="delete", name=name)
        done = await healed(keeper)
        assert [drift.what for drift in done.drifts] == ["orphan"]
        repair = await outcome(pool, str(done.repairs[0].saga_id))
        assert repair.status == "completed"
        assert list(evolution.live()) == [name]
        assert [d.what for d in (await find(keeper)).drifts] == ["impostor"]
    strangers_are_safe(evolution)


@pytest.mark.fault("c17")
async def test_a_server_that_is_warming_up_looks_as_well_as_before(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        for _ in range(3):
            await made(pool, redis)
        await healed(keeper)
        await evolution.restart(warmup=5.0)
        assert len(evolution.live()) < 3
        assert (await find(keeper)).drifts == []


async def test_a_repair_that_was_refused_is_asked_for_again_later_and_not_all_the_time(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await resurrected(pool, redis, evolution)
        # A disabled row of somebody's names it now, so the repair is refused when it is accepted.
        await run_once(keeper)

        async def refused(command: Any) -> Any:
            return await keeper.gate.submit(
                replace(command, data=command.data | {"key_id": "00000000"})
            )

        done = await run_once(replace(keeper, gate=Interposed(refused)))  # type: ignore[arg-type]
        assert [asked.kind for asked in done.repairs] == ["rejected"]
        patient = replace(keeper, quiet=3600.0)
        await pool.execute(
            "UPDATE evosaga.sightings SET first_seen = first_seen - interval '1 hour'"
        )
        assert not (await run_once(patient)).repairs
        await pool.execute(
            "UPDATE evosaga.sightings SET repaired_at = repaired_at - interval '3 hours'"
        )
        done = await run_once(patient)
        assert [asked.kind for asked in done.repairs] == ["started"]
        await outcome(pool, str(done.repairs[0].saga_id))
    assert saga.instance_name not in evolution.rows()


@pytest.mark.fault("l3")
async def test_an_instance_of_ours_whose_row_was_deleted_by_hand_is_removed(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        await pool.execute("DELETE FROM healthcare.integrations")
        done = await healed(keeper)
        assert {drift.what for drift in done.drifts} == {"rowless", "key_left"}
        assert not evolution.rows()
        assert not await redis.exists(routing_key.key(str(saga.instance_name)))
        assert (await find(keeper)).drifts == []


async def test_a_connected_phone_whose_row_was_deleted_by_hand_gets_its_row_again_when_asked(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis, channel="WHATSAPP-BAILEYS")
        name, organization = str(saga.instance_name), saga.organization_id
        assert organization
        before = await rows.of(name)
        evolution.pair(name, PHONE)
        await eventually(lambda: evolution.rows()[name].state == "open")
        await pool.execute("DELETE FROM healthcare.integrations")
        done = await healed(keeper)
        assert ("row_gone", "ask") in [(drift.what, drift.policy) for drift in done.drifts]
        assert name in evolution.live(), "nobody has asked for anything"
        [drift] = (await find(keeper, keep=Keep(organization))).drifts
        assert drift.command
        submitted = await keeper.gate.submit(
            Command(id="again", type=drift.command.type, data=dict(drift.command.data))
        )
        assert (await outcome(pool, str(submitted.saga_id))).status == "completed"
        after = await rows.of(name)
        same = ("id", "organization_id", "config", "webhook_token", "enabled")
        assert {k: after[k] for k in same} == {k: before[k] for k in same}
        assert (after["status"], after["whatsapp_number"]) == ("connected", PHONE)
        assert (await find(keeper)).drifts == []
        gone = await outcome(pool, await publish(redis, delete(name)))
        assert gone.status == "completed"
    assert not evolution.rows()
    strangers_are_safe(evolution)


async def test_wrong_status_pending_although_the_phone_is_connected(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis, channel="WHATSAPP-BAILEYS")
        name = str(saga.instance_name)
        evolution.pair(name, PHONE)
        await eventually(lambda: evolution.rows()[name].state == "open")
        done = await healed(keeper)
        assert [drift.what for drift in done.drifts] == ["wrong_status"]
        assert "the row says pending, Evolution says open" in done.drifts[0].cause
        row = await rows.of(name)
        assert (row["status"], row["whatsapp_number"]) == ("connected", PHONE)
        evolution.logout(name)
        await eventually(lambda: evolution.rows()[name].state == "close")
        await healed(keeper)
        assert (await rows.of(name))["status"] == "disconnected"
        assert (await find(keeper)).drifts == []
    events = await pool.fetch("SELECT data FROM evosaga.saga_events WHERE type <> 'saga.started'")
    assert not any(PHONE in event["data"] for event in events), "no phone number leaves Postgres"


@pytest.mark.fault("e8")
async def test_a_row_that_somebody_changed_since_it_was_looked_at_is_left_alone(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        evolution.drop(str(saga.instance_name))
        await run_once(keeper)
        kept = keeper.gate.submit

        async def late(command: Any) -> Any:
            accepted = await kept(command)
            await pool.execute("UPDATE healthcare.integrations SET status = 'disconnected'")
            return accepted

        # The saga is accepted, and before its step in Postgres somebody else writes.
        evolution.arm("slow", operation="connectionState", seconds=0.5, times=None)
        done = await run_once(replace(keeper, gate=Interposed(late)))  # type: ignore[arg-type]
        repair = await outcome(pool, str(done.repairs[0].saga_id))
        assert (repair.status, repair.code) == ("compensated", "changed_meanwhile")


async def test_a_deletion_that_is_called_off_nowhere_is_only_finished_when_asked(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        await pool.execute("UPDATE healthcare.integrations SET status = 'deleting'")
        done = await healed(keeper)
        assert not done.repairs
        assert [(d.what, d.policy) for d in done.drifts] == [("deletion_stopped", "ask")]
    assert saga.instance_name in evolution.rows()


async def test_a_deletion_that_nobody_finishes_is_finished_once_the_instance_is_gone(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    rows: Rows,
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        await pool.execute("UPDATE healthcare.integrations SET status = 'deleting'")
        evolution.drop(str(saga.instance_name))
        done = await healed(keeper)
        assert "deletion_left" in [drift.what for drift in done.drifts]
        assert await rows.count() == 0
        assert (await find(keeper)).drifts == []


async def test_half_an_instance_is_seen_when_its_organization_is_looked_at(
    settings: Settings, keeper: Reconciler, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        saga = await made(pool, redis)
        assert saga.organization_id
        evolution.half_delete(str(saga.instance_name), keep="row")
        [drift] = (await find(keeper, keep=Keep(saga.organization_id))).drifts
        assert (drift.what, drift.policy) == ("half_there", "auto")
        assert drift.command
        assert drift.command.data["seen"] == "half"


@pytest.mark.fault("f8")
async def test_keys_that_say_what_is_not_so_are_dropped_and_filled_again_by_readers(
    settings: Settings,
    keeper: Reconciler,
    pool: Pool,
    redis: Redis,
) -> None:
    async with running_worker(settings):
        sagas = [await made(pool, redis) for _ in range(4)]
        await healed(keeper)
        names = [str(saga.instance_name) for saga in sagas]
        reader = ClinicCache(redis, pool)
        for name in names:
            assert await reader.get(name)
        assert (await find(keeper)).drifts == []
        right = json.loads(await redis.get(routing_key.key(names[0])) or b"")
        wrong = right | {"organization_id": str(uuid.uuid4())}
        await redis.set(routing_key.key(names[0]), json.dumps(wrong), ex=600)
        await redis.set(routing_key.key(names[1]), b"\xff garbage", ex=600)
        await redis.delete(routing_key.key(names[2]))
        await redis.lpush(routing_key.key(names[2]), "of another kind")
        await redis.persist(routing_key.key(names[3]))
        await redis.set(routing_key.key("nobody-s"), json.dumps(right), ex=600)
        done = await healed(keeper)
        assert sorted(d.what for d in done.drifts) == [
            "key_eternal",
            "key_left",
            "key_unreadable",
            "key_unreadable",
            "key_wrong",
        ]
        assert not await redis.keys(routing_key.key("*"))
        route = await reader.get(names[0])
        assert route is not None
        assert route.organization_id == str(sagas[0].organization_id)
        assert (await find(keeper)).drifts == []
