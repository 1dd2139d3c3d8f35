"""A wish that was understood and refused is an answer: whoever asked has it, so nothing is dead."""

from dataclasses import replace

from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.control.conftest import Gossip, parked, send
from tests.support.commandline import Evosaga
from tests.support.driving import create, dead_letters, delete, outcome, publish
from tests.support.waiting import eventually
from tests.support.workers import Worker


async def test_what_the_history_forbids_is_refused_before_it_is_published(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip, evosaga: Evosaga
) -> None:
    gossip.refuses = False
    saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    published = await redis.xlen(streams.COMMANDS)
    for verb, said, *more in (
        ("replay", "nothing left to do"),
        ("replay", "nothing left to do", "--no-wait"),
        ("cancel", "is completed already"),
        ("cancel", "is completed already", "--json"),
    ):
        ran = await evosaga(verb, str(saga.saga_id), *more)
        assert (ran.code, ran.out) == (2, ""), ran
        assert ran.err.startswith("evosaga: the command was refused: the saga is completed")
        assert said in ran.err
    assert await redis.xlen(streams.COMMANDS) == published
    assert await dead_letters(redis) == []
    doctor = await evosaga("doctor", "--json")
    (letters,) = [check for check in doctor.json["checks"] if check["check"] == "dead letters"]
    assert (letters["verdict"], letters["said"]) == ("ok", "0")


async def test_a_reason_that_no_history_takes_is_refused_before_it_is_published(
    worker: Worker, pool: Pool, redis: Redis, evosaga: Evosaga
) -> None:
    saga = await parked(pool, redis)
    published = await redis.xlen(streams.COMMANDS)
    for reason, said in (("x" * 501, "at most 500 characters"), ("\x1b[2J", "control characters")):
        for verb in ("replay", "cancel"):
            ran = await evosaga(verb, str(saga.saga_id), "--reason", reason)
            assert (ran.code, ran.out) == (2, "")
            assert said in ran.err
    assert await redis.xlen(streams.COMMANDS) == published
    assert await dead_letters(redis) == []


async def test_what_only_a_look_at_the_world_forbids_is_told_and_its_letter_taken_away(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, evosaga: Evosaga
) -> None:
    saga = await parked(pool, redis)
    await redis.xadd(streams.COMMANDS, {"data": "poison"})
    await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
    evolution.foreign(str(saga.instance_name))
    ran = await evosaga("replay", str(saga.saga_id))
    assert ran.code == 2
    assert "the command was refused" in ran.err
    assert "(blocked)" in ran.err
    assert [letter["code"] for letter in await dead_letters(redis)] == ["malformed_json"]


async def test_who_publishes_on_the_stream_finds_the_answer_among_the_dead_letters(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip
) -> None:
    gossip.refuses = False
    saga = await outcome(pool, await publish(redis, create()))
    await send(redis, "saga.cancel", saga)
    await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
    assert [letter["code"] for letter in await dead_letters(redis)] == ["not_cancellable"]


async def test_qr_says_why_there_is_nothing_to_scan(
    worker: Worker,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    gossip: Gossip,
    evosaga: Evosaga,
) -> None:
    async def said(name: str, code: int, json: bool = False) -> str:
        ran = await evosaga("qr", name)
        assert ran.code == code, ran
        if json:
            told = await evosaga("qr", name, "--json")
            assert (told.code, told.json["state"]) == (code, "absent")
            assert told.json["message"] in ran.err
        return ran.err

    assert "no integration has the instance wa-nobody" in await said("wa-nobody", 2, json=True)
    stuck = await parked(pool, redis, channel="WHATSAPP-BAILEYS")
    gossip.refuses = False
    saga = await outcome(pool, await publish(redis, create(channel="WHATSAPP-BAILEYS")))
    name = str(saga.instance_name)
    assert f"its instance: evosaga qr {name}" in await said(str(saga.saga_id), 2)

    evolution.drop(name)
    await redis.delete(f"evosaga:qr:{name}")  # a fresh one is shown without asking Evolution
    vanished = await said(name, 1, json=True)
    assert "has vanished from Evolution, though its row is here" in vanished
    assert f"evosaga reconcile --organization-id {saga.organization_id}" in vanished
    await pool.execute(
        "UPDATE healthcare.integrations SET status = 'deleting' WHERE organization_id = $1",
        saga.organization_id,
    )
    assert f"{name} is being deleted" in await said(name, 1)
    await outcome(pool, await publish(redis, delete(name)))
    assert f"{name} was deleted" in await said(name, 2)

    await pool.execute(
        "DELETE FROM healthcare.integrations WHERE organization_id = $1", stuck.organization_id
    )
    parked_one = await said(str(stuck.instance_name), 2)
    assert f"the create of it is failed; why: evosaga why {stuck.saga_id}" in parked_one


async def test_qr_says_when_evolution_can_not_be_reached(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip, evosaga: Evosaga
) -> None:
    gossip.refuses = False
    saga = await outcome(pool, await publish(redis, create(channel="WHATSAPP-BAILEYS")))
    await redis.delete(f"evosaga:qr:{saga.instance_name}")
    away = replace(evosaga, hasty=True).having(evolution_url="http://127.0.0.1:1")
    ran = await away("qr", str(saga.instance_name))
    assert ran.code == 3
    assert "Evolution does not answer clearly at the moment" in ran.out
