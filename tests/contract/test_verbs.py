"""What each verb prints with ``--json``, and the code it ends with."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from tests.contract.golden import assert_golden, shape
from tests.support.commandline import Evosaga, Ran, commandline, creation, working
from tests.support.waiting import eventually

ORGANIZATION = "4e8ddba1-ad52-4613-9a03-ec64636b3f6c"


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


@pytest.mark.timeout(240)  # two dozen processes
async def test_each_verb_prints_the_json_and_ends_with_the_code_that_were_promised(
    evosaga: Evosaga, pool: Pool, redis: Redis
) -> None:
    told: dict[str, Any] = {}

    async def run(name: str, *arguments: str) -> Ran:
        ran = await evosaga(*arguments, "--json")
        told[name] = {"code": ran.code, "json": shape(printed(ran))}
        return ran

    await run("migrate", "migrate")
    async with working(evosaga, pool):
        made = await run("create", *creation(**{"organization-id": ORGANIZATION}))
        name = made.json["instance_name"]
        await run("list", "list")
        doctor = await evosaga("doctor", "--json")
        told["doctor"] = {"code": doctor.code, "checks": checks(doctor)}
        await asyncio.gather(
            run("create, a duplicate", *creation(**{"organization-id": ORGANIZATION})),
            run("status", "status", name),
            run("why", "why", name),
            run("events", "events", made.json["saga_id"]),
            run("qr", "qr", name),
            run("integrations list", "integrations", "list", "--search", "cl", "--limit", "1"),
            run("integrations show", "integrations", "show", name),
            run("reconcile", "reconcile"),
            run("health", "health"),
            run("check-deploy", "check-deploy"),
            run("appends", "appends"),
            run("replay, a plan", "replay", made.json["saga_id"], "--plan"),
            run("replay, refused", "replay", made.json["saga_id"]),
            run("cancel, refused", "cancel", made.json["saga_id"]),
        )
        await run("delete", "delete", name)
        await redis.xadd(streams.COMMANDS, {"data": "nonsense"})
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        await asyncio.gather(
            run("delete, not found", "delete", name),
            run("create, left alone", *creation(), "--no-wait"),
            run("rebuild", "rebuild", "--check"),
            run("events republish", "events", "republish", "--since", "1h"),
            run("letters", "letters"),
        )
    assert_golden("verbs", told)


async def test_wrong_usage_and_servers_that_are_away_have_codes_of_their_own(
    evosaga: Evosaga,
) -> None:
    away = evosaga.having(database_url="postgresql://nobody@127.0.0.1:1/nowhere")
    codes = {
        "an unknown verb": (await evosaga("no-such-verb")).code,
        "an unknown option": (await evosaga("list", "--no-such-option")).code,
        "an unknown saga": (await evosaga("status", str(uuid.uuid4()))).code,
        "a value that is none": (await evosaga("list", "--since", "yesteryear")).code,
        "a server that is away": (await away("list")).code,
        "help": (await evosaga("--help")).code,
    }
    assert_golden("exit_codes", codes)


def checks(doctor: Ran) -> list[list[str]]:
    """The names of the checks, each with its fields. What they say is the machine's."""
    return [[check["check"], *sorted(check)] for check in doctor.json["checks"]]


def printed(ran: Ran) -> Any:
    """One document, or one a line; None where there is nothing but the sentence on stderr."""
    if not ran.out:
        return None
    try:
        return ran.json
    except ValueError:
        return [json.loads(line) for line in ran.lines]
