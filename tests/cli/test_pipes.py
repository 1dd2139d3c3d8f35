"""Verbs whose reader, ``head`` say, has seen enough: they end, and have nothing to say about it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import Evosaga, commandline, everything
from tests.support.driving import create, outcome, publish
from tests.support.preloaded import forkserver, run_verb
from tests.support.sampled import sampled
from tests.support.waiting import eventually

SAGA = "SAGA"
VERBS = (
    "doctor",
    "doctor --json",
    "list",
    "list --json",
    f"status {SAGA}",
    f"why {SAGA}",
    f"events {SAGA}",
    f"events {SAGA} --json",
    f"events {SAGA} --follow",
    f"replay {SAGA} --plan",
    f"qr wa-{SAGA}",
    "check-deploy",
    "rebuild --check",
    "reconcile",
    "health",
    "events republish --since 1h",
    "migrate",
    "completion bash",
    "--help",
    "list --help",
)


@pytest.fixture
async def evosaga(
    tmp_path: Path, settings: Settings, pool: Pool, redis: Redis
) -> AsyncIterator[tuple[Evosaga, str]]:
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
        yield commandline(tmp_path, settings), str(saga.saga_id)


async def unread(evosaga: Evosaga, *arguments: str, remarks: bool) -> tuple[int, str]:
    """The exit code of a verb whose stdout nobody reads, or else its remarks; and what it says."""
    context = forkserver()
    (out, its_out), (err, its_err) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    with its_out, its_err:
        given = (arguments, evosaga.environment, evosaga.folder, its_out, its_err)
        process = context.Process(target=run_verb, args=given, daemon=True)
        read, closed = (out, err) if remarks else (err, out)
        closed.close()
        await asyncio.to_thread(process.start)
    try:
        said = await asyncio.wait_for(everything(read), 30)
        await eventually(lambda: process.exitcode is not None, 10, 0.005, "it to end")
        assert process.exitcode is not None
        return process.exitcode, said.decode()
    finally:
        process.kill()


async def test_no_verb_stumbles_when_nobody_reads_what_it_says(
    evosaga: tuple[Evosaga, str], subtests: pytest.Subtests
) -> None:
    command, saga_id = evosaga
    for verb in VERBS:
        with subtests.test(verb):
            arguments = verb.replace(SAGA, saga_id).split()
            code, said = await unread(command, *arguments, remarks=False)
            assert "Traceback" not in said
            assert "ignored" not in said
            assert "bug" not in said
            assert code in (0, 1), said


async def test_a_remark_that_nobody_reads_changes_neither_the_result_nor_the_exit_code(
    evosaga: tuple[Evosaga, str],
) -> None:
    command, saga_id = evosaga
    code, _ = await unread(command, "status", "no-such-saga", remarks=True)
    assert code == 2
    code, said = await unread(command, "cancel", saga_id, remarks=True)
    assert (code, said) == (2, "")


@pytest.fixture
def full_disk() -> Iterator[TextIO]:
    """A file that nothing fits into any more."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no device that is always full")
    with device.open("w") as disk:
        yield disk


# Others are asked in test_environment.
@pytest.mark.parametrize("verb", sampled(["doctor", f"status {SAGA}"], keep=["doctor"]))
async def test_a_result_that_can_not_be_written_is_told_in_one_line(
    evosaga: tuple[Evosaga, str], full_disk: TextIO, verb: str
) -> None:
    command, saga_id = evosaga
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "evosaga.orchestrator.cli"),
        *verb.replace(SAGA, saga_id).split(),
        stdout=full_disk,
        stderr=asyncio.subprocess.PIPE,
        cwd=command.folder,
        env=command.environment,
    )
    _, said = await process.communicate()
    told = "evosaga: stdout can't be written to: No space left on device\n"
    assert (said.decode(), process.returncode) == (told, 2)


def test_what_a_server_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output().problem("it says: \x1b[2J\x9b1m\rgone\nand more")
    assert capsys.readouterr().err == "evosaga: it says: ?[2J?1m?gone\nand more\n"
