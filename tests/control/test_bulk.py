"""Replaying and cancelling from the command line: one, several, all that fit; and what for."""

import asyncio
import os
import pty
import re
import uuid
from multiprocessing.connection import Connection
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.cli import bulk
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.control.conftest import Gossip, parked
from tests.support.commandline import Evosaga
from tests.support.driving import count, create, outcome, publish
from tests.support.preloaded import forkserver, run_at_terminal
from tests.support.sampled import sampled
from tests.support.waiting import eventually
from tests.support.workers import Worker

ID = "0197a0de-0000-7000-8000-000000000001"


async def resumptions(pool: Pool) -> int:
    query = "SELECT count(*) FROM evosaga.saga_events WHERE type = 'saga.resumed'"
    return await count(pool, query)


async def test_all_that_fit_are_replayed_and_each_that_did_not_complete_has_a_reason(
    worker: Worker,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    gossip: Gossip,
    evosaga: Evosaga,
) -> None:
    sagas = [await parked(pool, redis) for _ in range(5)]
    evolution.foreign(str(sagas[0].instance_name))
    gossip.refuses = False
    ran = await evosaga("replay", "--status=failed", "--code=no_voice", "--since=1h", "--json")
    assert ran.code == 1, ran.err
    assert ran.json["outcomes"] == {"completed": 4, "refused": 1}
    (refused,) = [saga for saga in ran.json["sagas"] if saga["outcome"] == "refused"]
    assert (refused["saga_id"], refused["code"]) == (str(sagas[0].saga_id), "blocked")
    assert "step evolution is blocked" in refused["message"]
    assert await redis.xlen(streams.DEAD_COMMANDS) == 0  # the report has told it

    evolution.drop(str(sagas[0].instance_name))
    again = await evosaga("replay", "--status=failed")
    assert again.code == 0, again.err
    assert again.lines[0] == "1 saga: 1 completed"
    nothing = await evosaga("replay", "--status=failed")
    assert (nothing.code, nothing.out) == (0, "")
    assert "no saga fits" in nothing.err


async def test_only_what_fits_the_filter_is_touched(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip, evosaga: Evosaga
) -> None:
    mine, other = await parked(pool, redis), await parked(pool, redis)
    gossip.refuses = False
    for useless in ("--saga=delete-integration", "--code=timeout", "--since=0s"):
        ran = await evosaga("replay", "--status=failed", useless)
        assert "no saga fits" in ran.err
    ran = await evosaga("replay", "--status=failed", f"--organization-id={mine.organization_id}")
    assert ran.code == 0, ran.err
    assert (await outcome(pool, str(mine.saga_id))).status == "completed"
    assert (await outcome(pool, str(other.saga_id))).status == "failed"


async def test_several_are_replayed_by_name_and_a_plan_of_several_changes_nothing(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip, evosaga: Evosaga
) -> None:
    one, two = await parked(pool, redis), await parked(pool, redis)
    names = [str(one.saga_id), str(two.instance_name)]
    plan = await evosaga("replay", *names, "--plan")
    assert plan.code == 0, plan.err
    assert plan.out.count("it goes on at step notify with fresh attempts") == 2
    rows = [line.split() for line in plan.lines]
    assert ["STEP", "ACTION", "EVIDENCE"] in rows
    assert [row[:2] for row in rows if row[:1] == ["notify"]] == [["notify", "redo"]] * 2
    assert await resumptions(pool) == 0
    gossip.refuses = False
    ran = await evosaga("replay", *names, "--json")
    assert ran.json["outcomes"] == {"completed": 2}


async def test_the_plan_of_one_saga_says_for_each_step_what_and_on_what_evidence(
    worker: Worker,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    evosaga: Evosaga,
) -> None:
    saga = await parked(pool, redis)
    await pool.execute("DELETE FROM healthcare.integrations")
    ran = await evosaga("replay", str(saga.saga_id), "--plan", "--json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert (told["saga_id"], told["allowed"]) == (str(saga.saga_id), True)
    assert {step["step"]: step["action"] for step in told["steps"]} == {
        "evolution": "reuse",
        "postgres": "redo",
        "cache": "reuse",
        "notify": "redo",
        "pair": "redo",
    }
    assert all(step["evidence"] for step in told["steps"])
    evolution.foreign(str(saga.instance_name))
    blocked = await evosaga("replay", str(saga.saga_id), "--plan")
    assert blocked.code == 1
    assert "refused: step evolution is blocked" in blocked.out
    without = evosaga.having(evolution_url=None, evolution_api_key=None)
    refused = await without("replay", str(saga.saga_id), "--plan")
    assert refused.code == 2
    assert "EVOSAGA_EVOLUTION_URL" in refused.err


async def test_several_are_cancelled_at_once(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, evosaga: Evosaga
) -> None:
    evolution.arm("licence", operation="create", times=None)
    ids = [await publish(redis, create()) for _ in range(3)]
    await eventually(lambda: evolution.fired.get("licence"), message="a create to be held")
    ran = await evosaga("cancel", *ids, "--reason=not wanted", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["outcomes"] == {"compensated": 3}
    late = await evosaga("cancel", *ids)
    assert late.code == 1
    assert late.lines[0] == "3 sagas: 3 refused"
    assert late.out.count("the saga is compensated already") == 3


async def test_without_a_worker_it_says_so_and_what_was_published_is_kept(
    pool: Pool, redis: Redis, evosaga: Evosaga
) -> None:
    await rows(pool, 3)
    ran = await evosaga("replay", "--status=failed", "--timeout=0.3")
    assert ran.code == 1
    assert "no worker is running" in ran.err
    assert ran.lines[0] == "3 sagas: 3 waiting"
    assert await redis.xlen("evosaga:commands") == 3
    left = await evosaga("replay", "--status=failed", "--no-wait")
    assert left.code == 0
    assert "published 3 commands" in left.err


async def rows(pool: Pool, number: int) -> None:
    """Status rows of parked sagas."""
    await pool.executemany(
        """
        INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,
            command_hash, correlation_id, next_sequence)
        VALUES ($1::text::uuid, 'create-integration', 1, 'failed', $1, $1, 'h', $1, 0)
        """,
        [(str(uuid.uuid4()),) for _ in range(number)],
    )


UNCLEAR = [
    (["replay"], "which sagas? evosaga replay ID…, or evosaga replay --status"),
    (["replay", ID, "--status=failed"], "or choose them by --status, not both"),
    (["replay", "--status=failed", "--since=tomorrow"], "--since 'tomorrow' is no time"),
    (["replay", "nobody", "else"], "no saga, command or instance is called 'nobody'"),
    (["replay", "--code=x"], "which sagas?"),
    (["cancel"], "which sagas?"),
    (["cancel", ID, f"--organization-id={ID}"], "or choose them by --organization-id, not both"),
]


@pytest.mark.parametrize(("arguments", "sentence"), sampled(UNCLEAR, keep=UNCLEAR[:4]))
async def test_what_is_not_clear_is_asked_back_and_nothing_is_published(
    evosaga: Evosaga, redis: Redis, arguments: list[str], sentence: str
) -> None:
    ran = await evosaga(*arguments)
    assert ran.code == 2
    assert sentence in ran.err
    assert await redis.exists("evosaga:commands") == 0


async def at_a_terminal(evosaga: Evosaga, answer: str, *arguments: str) -> tuple[int, str]:
    """Run it where a person sits, who types ``answer``; the exit code and what is on the screen."""
    ours, theirs = pty.openpty()
    given = (arguments, await environment(evosaga), evosaga.folder, Connection(os.dup(theirs)))
    process = forkserver().Process(target=run_at_terminal, args=given, daemon=True)
    try:
        await asyncio.to_thread(process.start)
        os.write(ours, answer.encode())
        await eventually(lambda: process.exitcode is not None, 30, message="it to end")
        code = process.exitcode
        assert code is not None
        os.set_blocking(ours, False)
        return code, os.read(ours, 1 << 20).decode()
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)


async def environment(evosaga: Evosaga) -> dict[str, str]:
    from tests.support.commandline import ROOT

    path = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    return path | evosaga.variables


async def test_a_person_is_asked_before_many_are_steered_and_may_say_no(
    pool: Pool, redis: Redis, evosaga: Evosaga
) -> None:
    await rows(pool, 2)
    code, seen = await at_a_terminal(evosaga, "n\n", "replay", "--status=failed", "--timeout=0")
    assert code == 1
    assert "replay 2 sagas? [y/N]" in seen
    assert "nothing was done" in seen
    assert await redis.exists("evosaga:commands") == 0
    code, seen = await at_a_terminal(evosaga, "y\n", "replay", "--status=failed", "--timeout=0")
    assert await redis.xlen("evosaga:commands") == 2
    assert "2 waiting" in seen
    code, seen = await at_a_terminal(
        evosaga, "", "replay", "--status=failed", "--yes", "--timeout=0"
    )
    assert "[y/N]" not in seen
    assert await redis.xlen("evosaga:commands") == 4


async def test_at_a_terminal_nothing_is_wider_than_the_window(
    worker: Worker, pool: Pool, redis: Redis, evosaga: Evosaga
) -> None:
    """An id that is broken over two lines can't be copied, so it stays whole."""
    saga = await parked(pool, redis, name="Clínica do Sol Nascente e do Mar " * 3)
    for verb in (["replay", "--plan"], ["why"], ["status"]):
        code, seen = await at_a_terminal(evosaga, "", *verb, str(saga.saga_id))
        assert code == 0, seen
        told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).splitlines()
        assert max(map(len, told)) <= 80, seen
        assert str(saga.saga_id) in seen
    code, seen = await at_a_terminal(evosaga, "", "list")
    assert str(saga.saga_id) in seen
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).splitlines())) <= 80


async def test_thousands_are_published_in_portions_so_that_others_get_through(
    pool: Pool, redis: Redis, evosaga: Evosaga, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody obeys here: no more than one portion may be waiting."""
    await rows(pool, bulk._WINDOW + 50)
    ran = await evosaga("replay", "--status=failed", "--timeout=2", "--json")
    assert ran.code == 1
    assert await redis.xlen("evosaga:commands") == bulk._WINDOW
    assert ran.json["outcomes"] == {"waiting": bulk._WINDOW + 50}


async def test_why_says_what_a_parked_saga_waits_for(
    worker: Worker, pool: Pool, redis: Redis, evosaga: Evosaga
) -> None:
    saga = await parked(pool, redis)
    told, data = await asyncio.gather(
        evosaga("why", str(saga.instance_name)), evosaga("why", str(saga.saga_id), "--json")
    )
    assert told.code == 0
    first = "Parked: step notify could not be finished: nobody can be told."
    assert told.lines[0] == first
    assert f"evosaga replay {saga.saga_id} --plan" in told.lines[-2]
    assert told.lines[-1].endswith("/ui/runbook#no_voice on the dashboard")
    document: dict[str, Any] = data.json
    words = {"saga_id", "status", "headline", "details", "next_at", "cure", "in_flight"}
    assert document.keys() == words | {"runbook"}
    assert (document["headline"], document["status"]) == (first, "failed")
