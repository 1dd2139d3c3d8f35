"""``evosaga dev`` on servers of its own: found by other verbs, and kept for the next time."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evosaga.orchestrator.cli import running_dev
from tests.support.commandline import Evosaga, creation


@contextlib.asynccontextmanager
async def dev(evosaga: Evosaga, *options: str) -> AsyncIterator[dict[str, str]]:
    """One that runs; what it says of itself."""
    process = await evosaga.start("dev", "--json", "--port=0", *options)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, await process.communicate()
        yield json.loads(line)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def connected(evosaga: Evosaga) -> set[str]:
    """The instances that ``health`` sees on Evolution, without a variable that says where it is."""
    ran = await evosaga("health", "--json")
    assert ran.code in (0, 1), ran.err
    return {one["instance"] for one in ran.json["integrations"] if one["state"] not in ("missing",)}


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_verbs_find_a_running_dev_and_the_next_one_has_what_it_stored(
    open_folder: Path,
) -> None:
    folder = open_folder / "kept"
    evosaga = Evosaga(open_folder).having(state_dir=str(folder))
    async with dev(evosaga):
        file = folder / "dev.json"
        assert file.stat().st_mode & 0o777 == 0o600
        made = await evosaga(*creation(channel="EVOLUTION"), "--json")
        assert made.code == 0, made.err
        name = made.json["instance_name"]
        assert await connected(evosaga) == {name}
        plan = await evosaga("replay", name, "--plan")
        assert "there is nothing left to do" in plan.out
    assert not file.exists()
    async with dev(evosaga):
        assert await connected(evosaga) == {name}
    async with dev(evosaga, "--fresh"):
        assert await connected(evosaga) == set()
        assert (await evosaga("list", "--json")).json["sagas"] == []


async def test_fresh_never_empties_a_database_that_was_given(tmp_path: Path) -> None:
    given = Evosaga(tmp_path).having(
        state_dir=str(tmp_path / "s"), database_url="postgresql://nobody@127.0.0.1:1/nowhere"
    )
    ran = await given("dev", "--fresh")
    assert ran.code == 2
    assert "--fresh empties the embedded servers" in ran.err


def test_a_dev_that_died_or_that_others_are_meant_by_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("EVOSAGA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EVOSAGA_STATE_DIR", str(tmp_path))
    assert running_dev.found() == {}
    with (tmp_path / running_dev.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running_dev.announced(tmp_path, {"url": "http://127.0.0.1:8080", "api_key": None}):
            assert running_dev.found() == {"url": "http://127.0.0.1:8080"}
            monkeypatch.setenv("EVOSAGA_EVOLUTION_URL", "http://127.0.0.1:9")
            assert running_dev.found() == {}
            monkeypatch.delenv("EVOSAGA_EVOLUTION_URL")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert running_dev.found() == {}, "nobody holds the lock, so it died"
        assert not (tmp_path / "dev.json").exists()
