"""``evosaga recover``: a Postgres of yesterday, with the Redis and the Evolution of today."""

import json
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import dead_letters, log_loss, streams
from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.events.dead_letters import DeadLetter
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.forgotten_commands import forgotten_commands
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler, run_once
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.services import Services
from tests.support.backup import Backup
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import (
    contradictions,
    count,
    create,
    delete,
    entries,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually

QR = {"channel": "WHATSAPP-BAILEYS"}


@pytest.fixture
def evosaga(settings: Settings, tmp_path: Path) -> Evosaga:
    return commandline(tmp_path, settings)


async def over_http(pool: Pool, services: Services, command: dict[str, Any]) -> str:
    """Accepted without the stream of commands."""
    gate = CommandHandler(pool, EventLog(pool), services, discover())
    await gate.submit(Command(command["id"], command["type"], command["data"]))
    return str(command["id"])


async def all_told(pool: Pool, redis: Redis) -> bool:
    told = {json.loads(fields[b"data"])["id"] for _, fields in await entries(redis, streams.EVENTS)}
    rows = await pool.fetch("SELECT saga_id, sequence FROM evosaga.saga_events")
    return told >= {f"{row['saga_id']}:{row['sequence']}" for row in rows}


async def test_what_a_restored_log_has_forgotten_is_shown_healed_and_told_in_a_new_epoch(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    services: Services,
    evolution: SimulatedEvolution,
    evosaga: Evosaga,
) -> None:
    kept, gone = create(), create()
    streamed, paired, unpaired = create(**QR), create(**QR), create(**QR)
    name = {one["id"]: f"wa-{one['id']}" for one in (kept, gone, streamed, paired, unpaired)}
    async with running_worker(settings):
        for command in (kept, gone):
            assert (await outcome(pool, await publish(redis, command))).status == "completed"
        await eventually(lambda: all_told(pool, redis))
    backup = await Backup.of(pool)
    async with running_worker(settings):
        deleted = delete(name[gone["id"]])
        await publish(redis, streamed)
        await publish(redis, deleted)
        for command in (paired, unpaired):
            await over_http(pool, services, command)
        for command in (streamed, deleted, paired, unpaired):
            assert (await outcome(pool, command["id"])).status == "completed"
        await eventually(lambda: all_told(pool, redis))
        await eventually(lambda: nothing_pending(redis))
    for command in (streamed, paired):
        evolution.pair(name[command["id"]])
    stranger = "a-neighbour"
    evolution.put(stranger, phone="5511900000000")
    await backup.restore(pool)

    async with running_worker(settings):
        # It is noticed before anything else happens, and nothing is told or removed.
        told = await entries(redis, streams.EVENTS)
        loss = await log_loss.recorded(pool)
        assert loss is not None
        await noticed_everywhere(pool, evosaga)
        plan = await evosaga("--json", "recover")
        assert plan.code == 1
        assert [one["id"] for one in plan.json["commands"]] == [streamed["id"], deleted["id"]]
        fates = {one["saga_id"]: one["what"] for one in plan.json["sagas"]}
        assert {fates[one["id"]] for one in (streamed, deleted)} == {"taken_again"}
        assert {fates[one["id"]] for one in (paired, unpaired)} == {"lost"}
        does = {one["where"]: one["does"] for one in plan.json["instances"]}
        assert does == {
            name[streamed["id"]]: "adopt",
            name[paired["id"]]: "adopt",
            name[unpaired["id"]]: "remove",
        }
        assert await entries(redis, streams.EVENTS) == told
        assert len(evolution.live()) == 5

        ran = await evosaga("--json", "recover", "--fix")
        assert (ran.code, ran.json["lost_sagas"]) == (1, [unpaired["id"]]), ran
        assert ran.json["begun"] == 1, ran.out
        assert ran.json["left"] == [], ran.json["repairs"]
        assert {one["status"] for one in ran.json["repairs"]} == {"completed"}, ran.json["repairs"]
        for command in (streamed, deleted):
            assert (await outcome(pool, command["id"])).status == "completed"
        left = {name[one["id"]] for one in (kept, streamed, paired)}
        assert set(evolution.live()) == {*left, stranger}
        assert await rows(pool) == left
        created = Counter(one.name for one in evolution.journal if one.applied == "created")
        assert created == Counter([*name.values(), stranger]), "each of them once"
        await eventually(lambda: all_told(pool, redis))
        new = (await entries(redis, streams.EVENTS))[len(told) :]
        assert {json.loads(fields[b"data"]).get("epoch") for _, fields in new} == {1}
        assert await contradictions(pool) == []
        ran = await evosaga("--json", "recover")
        assert (ran.code, ran.json["went_back"], ran.json["epoch"]) == (0, None, 1), ran


async def rows(pool: Pool) -> set[str]:
    found = await pool.fetch(
        "SELECT config ->> 'instance_name' AS name FROM healthcare.integrations"
    )
    return {row["name"] for row in found}


async def noticed_everywhere(pool: Pool, evosaga: Evosaga) -> None:
    async def alert() -> bool:
        return await count(pool, "SELECT count(*) FROM evosaga.alerts") > 0

    await eventually(alert, 20, message="an alert")
    row = await pool.fetchrow(
        "SELECT * FROM evosaga.alerts WHERE code = $1", log_loss.LOG_WENT_BACK
    )
    assert row is not None
    assert (row["severity"], "evosaga recover" in row["cure"]) == ("critical", True)
    ran = await evosaga("--json", "doctor")
    assert ran.code == 1
    bad = [one for one in ran.json["checks"] if one["verdict"] == "bad"]
    assert [one["check"] for one in bad] == [log_loss.LOG_WENT_BACK]
    assert "evosaga recover" in bad[0]["cure"]


async def test_while_the_loss_is_undecided_nothing_of_ours_is_removed(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    services: Services,
    evolution: SimulatedEvolution,
) -> None:
    """A key without a row, and an orphan: seen, and left alone."""
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        undone = await outcome(pool, await publish(redis, create()))
        assert made.instance_name
        assert undone.instance_name
        deleted = await publish(redis, delete(undone.instance_name))
        assert (await outcome(pool, deleted)).status == "completed"
        await eventually(lambda: all_told(pool, redis))
    evolution.put(undone.instance_name, token=token_of(services, undone.saga_id))
    await pool.execute("UPDATE evosaga.relay SET went_back_at = now(), went_back = '{}'")
    gate = CommandHandler(pool, EventLog(pool), services, discover())
    keeper = Reconciler(pool, services, gate, quiet=0.0)
    await run_once(keeper)
    done = await run_once(keeper)
    assert [drift.what for drift in done.drifts] == ["orphan"]
    assert done.repairs == []
    await pool.execute("UPDATE evosaga.relay SET went_back_at = NULL, went_back = NULL")
    assert len((await run_once(keeper)).repairs) == 1


def token_of(services: Services, saga_id: uuid.UUID) -> str:
    return str(services.keys.instance_token(saga_id, services.keys.current))


async def test_without_a_worker_the_commands_wait_and_the_stop_stays(
    settings: Settings, pool: Pool, redis: Redis, evosaga: Evosaga, evolution: SimulatedEvolution
) -> None:
    backup = await Backup.of(pool)
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        await eventually(lambda: all_told(pool, redis))
        await eventually(lambda: nothing_pending(redis))
    await backup.restore(pool)
    for _ in range(2):  # as an impatient operator does
        ran = await evosaga("recover", "--fix", "--timeout", "0.2")
        assert ran.code == 1
        assert "start one (evosaga worker)" in ran.err
        assert await log_loss.recorded(pool) is not None
    ran = await evosaga("events", "republish", "--since", "1h")
    assert (ran.code, "evosaga recover" in ran.err) == (2, True)
    async with running_worker(settings):
        again = await outcome(pool, str(made.saga_id))
        ran = await evosaga("recover", "--fix")
        assert ran.code == 0, ran
        assert "epoch 1" in ran.out
    assert (again.status, list(evolution.live())) == ("completed", [made.instance_name])


@pytest.mark.parametrize("decision", ["remove", "send again"])
async def test_a_command_whose_letter_is_gone_by_an_operators_decision_is_not_taken_again(
    pool: Pool, redis: Redis, decision: str
) -> None:
    await streams.ensure_group(redis)
    bodies = [json.dumps(create()).encode() for _ in range(3)]
    refused, forged, kept = [
        streams.as_text(await redis.xadd(streams.COMMANDS, {"data": body})) for body in bodies
    ]
    await redis.xreadgroup(streams.GROUP, "me", {streams.COMMANDS: ">"})
    await redis.xack(streams.COMMANDS, streams.GROUP, refused, forged, kept)
    await dead_letters.publish(
        redis,
        [
            DeadLetter(refused, bodies[0], {}, "failing", "it always fails", 20),
            DeadLetter(forged, b"another's", {}, "x", "x", 1),
            DeadLetter("no id", b"", {}, "x", "x", 1),
        ],
    )
    letters, _ = await dead_letters.newest(redis, 10)
    if decision == "remove":
        assert await dead_letters.delete(redis, [one.id for one in letters]) == 3
    else:
        await dead_letters.send_again(redis, letters)
    forgotten = await forgotten_commands(pool, redis, discover(), None)
    assert [one.message.id.decode() for one in forgotten] == [forged, kept]
    left = [fields[b"data"] for _, fields in await entries(redis, streams.COMMANDS)]
    assert left.count(bodies[0]) == (decision == "send again")
