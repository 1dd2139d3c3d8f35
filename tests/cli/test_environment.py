"""The places that people start evosaga in: each verb ends with one sentence, never a traceback.

Found in use: a ``.env`` of root's, one in Latin-1, no home, no name for the account.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import Evosaga, Ran, commandline, forked
from tests.support.driving import create, publish
from tests.support.sampled import sampled

PROGRAM = (sys.executable, "-W", "error", "-m", "evosaga.orchestrator.cli")
SOMEBODY = 12345
"""A user id without a name on any machine."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def as_somebody(evosaga: Evosaga, *arguments: str, folder: Path | None = None) -> Ran:
    """Run a verb as a user without a name; root enters the folder, as ``sudo -u`` does."""
    ran = await forked(arguments, evosaga.environment, folder or Path("/"), user=SOMEBODY)
    assert "Traceback" not in ran.err, ran.err
    return ran


def shell(
    evosaga: Evosaga, script: str, *arguments: str, **more: Any
) -> subprocess.CompletedProcess[str]:
    """A process from its first byte on, its streams as the shell makes them."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *PROGRAM, *arguments],
        env=evosaga.environment | more.pop("environment", {}),
        cwd=evosaga.folder,
        text=True,
        timeout=100,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),
    )


def one_sentence(err: str, *words: str) -> None:
    assert "Traceback" not in err, err
    assert "bug in evosaga" not in err
    [line] = err.strip().splitlines()
    assert line.startswith("evosaga: ")
    for word in words:
        assert word in line, line


# --- .env -------------------------------------------------------------------------------------


async def test_a_dotenv_that_is_no_utf_8_is_refused_in_a_sentence(evosaga: Evosaga) -> None:
    latin, wide = "X=café\n".encode("latin-1"), "X=1\n".encode("utf-16")
    for verb, content in (("list", latin), ("doctor", wide), ("worker", latin), ("migrate", wide)):
        (evosaga.folder / ".env").write_bytes(content)
        ran = await evosaga(verb)
        assert ran.code == 2, verb
        one_sentence(ran.err, f"{evosaga.folder}/.env is no UTF-8", "save it as UTF-8")


async def test_a_dotenv_with_a_byte_order_mark_is_read_from_its_first_line_on(
    evosaga: Evosaga,
) -> None:
    (evosaga.folder / ".env").write_bytes(b"\xef\xbb\xbfEVOSAGA_LEASE_SECONDS=soon\n")
    ran = await evosaga.having(lease_seconds=None)("list")
    assert ran.code == 2
    one_sentence(ran.err, "EVOSAGA_LEASE_SECONDS")


async def test_a_line_of_a_dotenv_that_can_not_be_read_is_refused_by_its_number(
    evosaga: Evosaga,
) -> None:
    """It would be left out, and the embedded Postgres taken instead of the one that it names."""
    for content in ("X=1\nEVOSAGA_DATABASE_URL: postgresql://db/x\n", "#\nEVOSAGA_PORT='80\n"):
        (evosaga.folder / ".env").write_text(content)
        ran = await evosaga("list")
        assert ran.code == 2
        one_sentence(ran.err, f"line 2 of {evosaga.folder}/.env can't be understood", "NAME=value")
    (evosaga.folder / ".env").write_text("!! of another program\nEVOSAGA_LEASE_SECONDS=soon\n")
    ran = await evosaga.having(lease_seconds=None)("list")
    one_sentence(ran.err, "EVOSAGA_LEASE_SECONDS")


async def test_a_dotenv_is_read_however_its_lines_are_written(evosaga: Evosaga) -> None:
    for content in (
        "export EVOSAGA_LEASE_SECONDS=soon\n",
        'EVOSAGA_LEASE_SECONDS="soon"\r\n',
        "EVOSAGA_LEASE_SECONDS = 'soon'  # a remark\r",
    ):
        (evosaga.folder / ".env").write_bytes(content.encode())
        ran = await evosaga.having(lease_seconds=None)("list")
        assert ran.code == 2, content
        one_sentence(ran.err, "EVOSAGA_LEASE_SECONDS")


async def test_a_folder_that_is_called_dotenv_is_none(evosaga: Evosaga) -> None:
    (evosaga.folder / ".env").mkdir()
    ran = await evosaga("list", "--json")
    assert ran.code == 0, ran.err


async def test_a_value_that_makes_no_sense_names_its_variable(evosaga: Evosaga) -> None:
    for name, value in (("watch_after", "soon"), ("log_level", "l\udcffoud"), ("port", "-1")):
        ran = await evosaga.having(**{name: value})("list")
        assert ran.code == 2, name
        one_sentence(ran.err, f"EVOSAGA_{name.upper()}")


def test_a_folder_that_is_gone_has_no_dotenv(evosaga: Evosaga, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = shell(evosaga, f'cd "{gone}" && rmdir "{gone}" && exec "$@"', "list")
    assert ran.returncode == 0, ran.stderr
    assert "there is no saga yet" in ran.stderr


@as_root
async def test_a_dotenv_of_somebody_elses_is_refused_in_a_sentence(evosaga: Evosaga) -> None:
    folder = opened(evosaga.folder)
    (folder / ".env").write_text("EVOSAGA_LEASE_SECONDS=1\n")
    (folder / ".env").chmod(0o600)
    ran = await as_somebody(evosaga, "list", folder=folder)
    assert ran.code == 2
    one_sentence(ran.err, "/.env can't be read: Permission denied", "make it readable")


@as_root
async def test_a_folder_that_nobody_may_look_into_does_not_keep_a_verb_from_working(
    evosaga: Evosaga,
) -> None:
    closed = opened(evosaga.folder) / "closed"
    closed.mkdir(0o700)
    (closed / ".env").write_text("EVOSAGA_LEASE_SECONDS=nonsense\n")
    nowhere = evosaga.having(database_url="postgresql://evosaga@127.0.0.1:1/db")
    ran = await as_somebody(nowhere, "list", folder=closed)
    assert ran.code == 3, "as anywhere else: that Postgres is not there"
    assert "evosaga: no .env is read here: Permission denied\n" in ran.err


# --- accounts ---------------------------------------------------------------------------------


@as_root
async def test_an_account_without_a_name_is_told_to_write_one_into_the_url(
    evosaga: Evosaga,
) -> None:
    nameless = evosaga.having(database_url="postgresql://127.0.0.1:1/db")
    for verb in ("list", "migrate"):
        ran = await as_somebody(nameless, verb)
        assert ran.code == 2
        one_sentence(ran.err, "EVOSAGA_DATABASE_URL names no user", "postgresql://USER@")
    named = evosaga.having(database_url="postgresql://evosaga@127.0.0.1:1/db")
    ran = await as_somebody(named, "list")
    assert ran.code == 3
    one_sentence(ran.err, "can't be reached")


@as_root
async def test_a_home_of_somebody_elses_is_not_taken_for_a_postgres_that_is_away(
    evosaga: Evosaga,
) -> None:
    closed = opened(evosaga.folder) / "root"
    closed.mkdir(0o700)
    ours = evosaga.having(database_url="postgresql://evosaga@127.0.0.1:1/db")
    ours.variables["HOME"] = str(closed)
    ran = await as_somebody(ours, "list")
    assert ran.code == 2
    one_sentence(ran.err, str(closed), "can't be looked at: Permission denied", "set HOME")


@as_root
async def test_an_account_without_a_home_is_told_what_to_set(evosaga: Evosaga) -> None:
    homeless = evosaga.having(database_url=None, redis_url=None, state_dir=None)
    for verb in ("list", "dev", "migrate"):
        ran = await as_somebody(homeless, verb)
        assert ran.code == 2, verb
        one_sentence(ran.err, "EVOSAGA_STATE_DIR", "no folder is known to keep things in")


@as_root
async def test_a_state_folder_that_is_not_ours_to_write_is_named(evosaga: Evosaga) -> None:
    bare = evosaga.having(database_url=None, redis_url=None, state_dir="/proc/evosaga")
    folder = opened(evosaga.folder) / "roots"
    folder.mkdir(0o755)
    for verb in ("list", "dev"):
        ran = await bare(verb)
        assert ran.code in (2, 3), verb
        one_sentence(ran.err, "/proc/evosaga")
        ran = await as_somebody(bare.having(state_dir=str(folder)), verb)
        assert ran.code in (2, 3), verb
        one_sentence(ran.err, str(folder))


# --- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", sampled([["list", "--json"], ["--help"]], keep=[["list", "--json"]])
)
def test_a_full_disk_behind_stdout_is_a_sentence(evosaga: Evosaga, verb: list[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    ran = shell(evosaga, 'exec "$@" >/dev/full', *verb)
    assert ran.returncode == 2
    one_sentence(ran.stderr, "stdout can't be written to: No space left on device")


def test_a_closed_stdout_is_a_sentence(evosaga: Evosaga) -> None:
    ran = shell(evosaga, 'exec "$@" <&- >&-', "list", "--json")
    assert ran.returncode == 2
    one_sentence(ran.stderr, "stdout is closed")


def test_a_closed_stderr_changes_no_result(evosaga: Evosaga) -> None:
    ran = shell(evosaga, 'exec "$@" 2>&-', "list", "--json")
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["sagas"] == []


ASCII_ONLY = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LATIN_1 = {"PYTHONIOENCODING": "latin-1"}


@pytest.mark.parametrize(
    ("locale", "verb"),
    sampled(
        [
            (ASCII_ONLY, ["list"]),
            (ASCII_ONLY, ["doctor", "--json"]),
            (LATIN_1, ["letters", "--json"]),
        ],
        keep=[(ASCII_ONLY, ["list"]), (LATIN_1, ["letters", "--json"])],
    ),
)
async def test_a_locale_without_our_characters_gets_what_it_can_show(
    evosaga: Evosaga, redis: Redis, locale: dict[str, str], verb: list[str]
) -> None:
    await publish(redis, {**create(name="Clínica 日本"), "type": "integration.crëate"})
    ran = shell(evosaga, 'exec "$@"', *verb, environment=locale)
    assert ran.returncode in (0, 1), ran.stderr
    assert "Traceback" not in ran.stderr
    if "--json" in verb:
        json.loads(ran.stdout)


def opened(folder: Path) -> Path:
    """The folder, passable for everybody up to the root."""
    for one in (folder, *folder.parents):
        if one.stat().st_uid == os.geteuid() and not one.stat().st_mode & 0o001:
            one.chmod(one.stat().st_mode | 0o011)
    folder.chmod(0o755)
    return folder
