"""``evosaga letters``: whoever is told of dead letters can read them, and take them away."""

import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from evosaga.events import dead_letters as letters
from evosaga.events import streams
from evosaga.events.dead_letters import DeadLetter
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, dead_letters
from tests.support.waiting import eventually


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def test_each_letter_says_when_it_came_why_and_which_command_it_was(
    evosaga: Evosaga, settings: Settings, redis: Redis
) -> None:
    assert (await evosaga("letters")).err.splitlines()[-1] == "there is no dead letter"
    bad = create(number="+55 11") | {"id": "order-7"}
    sent = [json.dumps(bad).encode(), b"\xff\x1b[2J"]
    for data in sent:
        await redis.xadd(streams.COMMANDS, {"data": data})
    async with running_worker(settings):

        async def dead() -> bool:
            return len(await dead_letters(redis)) == 2

        await eventually(dead)
    shown = await evosaga("letters")
    assert shown.code == 0
    assert shown.lines[0].split()[0] == "LETTER"
    assert any("invalid_data" in line and "order-7" in line for line in shown.lines)
    assert any("not_utf8" in line for line in shown.lines)
    told = (await evosaga("letters", "--json")).json
    assert told["more"] == 0
    assert {letter["data"] for letter in told["letters"]} == {
        sent[0].decode(),
        "\\xff\x1b[2J",
    }
    doctor = (await evosaga("doctor")).out
    assert "what and why: evosaga letters" in doctor

    ids = [letter["letter_id"] for letter in told["letters"]]
    gone = await evosaga("letters", "--remove", *ids)
    assert (gone.code, gone.out) == (0, "removed 2\n")
    assert await dead_letters(redis) == []
    again = await evosaga("letters", "--remove", *ids)
    assert again.code == 2
    assert "are not there" in again.err


async def test_the_newest_come_first_and_what_is_left_out_is_counted(
    evosaga: Evosaga, redis: Redis
) -> None:
    dead = [DeadLetter(f"{n}-0", b"{}", {}, f"code-{n}", "why", 1) for n in range(5)]
    await letters.publish(redis, dead)
    shown = await evosaga("letters", "--limit", "2")
    assert [line.split()[-2] for line in shown.lines[1:]] == ["code-4", "code-3"]
    assert "3 older ones are there: --limit 5" in shown.err
    assert (await evosaga("letters", "--limit", "2", "--json")).json["more"] == 3


async def test_what_is_no_letters_id_is_wrong_usage(evosaga: Evosaga, redis: Redis) -> None:
    ran = await evosaga("letters", "--remove", "all")
    assert (ran.code, ran.out) == (2, "")
    assert "is no letter's id" in ran.err


async def test_what_somebody_else_put_there_is_shown_whole_and_can_be_taken_away(
    evosaga: Evosaga, redis: Redis
) -> None:
    await redis.xadd(streams.DEAD_COMMANDS, {"foo": "bar"})
    whole = DeadLetter("1-0", b"", {b"body": b"{}"}, "no_data_field", "why", 1)
    await letters.publish(redis, [whole])
    told = (await evosaga("letters", "--json")).json["letters"]
    assert [(one["code"], one["fields"]) for one in told] == [
        ("no_data_field", {"body": "{}"}),
        ("", {"foo": "bar"}),
    ]
    assert (await evosaga("letters")).code == 0
    assert (await evosaga("letters", "--remove", told[1]["letter_id"])).code == 0
