"""The owner's side of a server: connect to its supervisor, or start one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evosaga.orchestrator.local.binaries import LocalServerUnavailable
from evosaga.orchestrator.local.paths import (
    Account,
    Home,
    closed_to,
    make_own_folder,
    private_folder,
    socket_folder,
)
from evosaga.orchestrator.local.server_process import (
    START_SECONDS,
    STOP_SECONDS,
    Failed,
    ServerSpec,
    claim_data,
)

ROOT = Path(__file__).parents[3]
GUARDIAN = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    "from evosaga.orchestrator.local.supervisor import main; main(*sys.argv[1:])"
)
# The environment may hold secrets, and settings that are meant for other servers.
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DOCKER_HOST", "DOCKER_CONTEXT")


MakePlan = Callable[[Home], ServerSpec]


class SupervisorConnection:
    """This process's connection to a supervisor; the kernel closes it if the process is killed."""

    def __init__(self, home: Home, make_plan: MakePlan) -> None:
        self.home = home
        self.make_plan = make_plan
        self.plan: ServerSpec | None = None  # set in the process that started the supervisor
        self.connection: socket.socket | None = None
        self.process = os.getpid()

    def take(self) -> dict[str, Any]:
        """Make sure that the server runs; returns its url, version, source and pid."""
        deadline = time.monotonic() + START_SECONDS + STOP_SECONDS
        while time.monotonic() < deadline:
            with self.locked() as lock:
                self.connection = self.join() if lock is None else self.found(lock)
            if self.connection is not None and (answer := self.heard()) is not None:
                return answer
            if lock is not None:
                raise LocalServerUnavailable(
                    f"The guardian of {self.home.path} ended at once: {self.home.log.read_text()}"
                )
            time.sleep(0.01)  # another supervisor is starting or ending
        raise LocalServerUnavailable(f"The server in {self.home.path} neither starts nor ends.")

    def ask(self, word: str) -> dict[str, Any]:
        """Let the supervisor `start`, `stop` or `kill` the server."""
        if self.connection is not None:
            with contextlib.suppress(BrokenPipeError):
                self.connection.sendall(f"{word}\n".encode())
            if (answer := self.heard()) is not None:
                return answer
        return self.take() if word == "start" else {"pid": 0}  # the supervisor was killed

    def give_back(self) -> None:
        """Close the connection; the last owner waits until the server is gone."""
        if self.process != os.getpid():  # a forked child: the connection is its parent's
            return
        if self.connection is not None:
            with self.connection as connection, contextlib.suppress(OSError):
                connection.settimeout(STOP_SECONDS * 2)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            self.connection = None
        elif self.plan is None:
            return  # it was never opened
        with self.locked() as lock:
            if lock is not None:
                self.clear_up()

    def clear_up(self) -> None:
        """Clean up after a supervisor that was killed, when no other one runs."""
        if self.plan is not None and self.home.path.exists():
            with contextlib.suppress(Failed):
                os.close(claim_data(self.plan))
        for folder in self.home.remove:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """The lock that a supervisor holds while it runs; None when one does."""
        try:
            lock = os.open(self.home.path / "guardian.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            yield None  # the folder is gone already
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
        finally:
            os.close(lock)

    def join(self) -> socket.socket | None:
        """A connection to the running supervisor, if it listens."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.home.control))
        except OSError:
            connection.close()
            return None
        return connection

    def found(self, lock: int) -> socket.socket:
        """A connection to a new supervisor, which inherits the lock."""
        if self.home.sockets != self.home.path:
            make_own_folder(self.home.sockets, 0o700 if os.geteuid() else 0o711)
        self.plan = self.make_plan(self.home)
        if self.home.log.exists():  # one log per run, and the previous one, to bound the size
            self.home.log.replace(self.home.log.with_suffix(".log.before"))
        self.home.log.touch(mode=0o600)  # an error may quote stored data
        ours, theirs = socket.socketpair()
        ours.sendall(json.dumps(self.plan._asdict()).encode() + b"\n")
        with theirs, self.home.log.open("ab") as log:
            passed = (theirs.fileno(), lock)
            started = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", "-c", GUARDIAN, *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=log,  # never our own: a caller may wait until it is closed
                stderr=log,
                cwd="/",
                env={k: os.environ[k] for k in PASSED_ON if k in os.environ} | {"LC_ALL": "C"},
                start_new_session=True,
                pass_fds=passed,
            )
        if started.wait() != 0:  # the parent, which the supervisor leaves at once by forking
            ours.close()
            raise LocalServerUnavailable(
                f"The guardian of {self.home.path} didn't start: {self.home.log.read_text()}"
            )
        return ours

    def heard(self) -> dict[str, Any] | None:
        """The supervisor's next answer; None when it is gone. Raises LocalServerUnavailable."""
        assert self.connection is not None
        self.connection.settimeout(START_SECONDS + STOP_SECONDS * 2)
        answer = b""
        while not answer.endswith(b"\n"):
            try:
                more = self.connection.recv(4096)
            except ConnectionError:
                more = b""
            except TimeoutError:
                raise LocalServerUnavailable(
                    f"The server in {self.home.path} gives no sign; see {self.home.log}"
                ) from None
            if not more:
                self.connection.close()
                self.connection = None
                return None
            answer += more
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            raise LocalServerUnavailable(
                f"The server in {self.home.path} can't be started: {told['error']}"
            )
        return told


@dataclass
class LocalServer:
    """A running server. `pid` is 0 while it is down; `url` stays the same for its lifetime."""

    url: str
    kind: str
    version: str
    source: str
    folder: Path
    pid: int
    _lease: SupervisorConnection = field(repr=False)

    def kill(self) -> None:
        """SIGKILL the server and its children, as in a crash. Returns when they are gone."""
        self.pid = self._lease.ask("kill")["pid"]

    def stop(self) -> None:
        """Stop the server with an orderly shutdown. Returns when it is gone."""
        self.pid = self._lease.ask("stop")["pid"]

    def start_again(self) -> None:
        """Start it again with the same data; returns when it accepts clients. No effect if it runs.

        Raises LocalServerUnavailable.
        """
        self.pid = self._lease.ask("start")["pid"]


@contextmanager
def run(
    kind: str, folder: Path | None, account: Account | None, longest_name: int, make_plan: MakePlan
) -> Iterator[LocalServer]:
    """A server of this kind in `folder`, or in a temporary one, until the context ends."""
    kept = folder.expanduser().absolute() if folder is not None else private_folder(account)
    path = kept / kind
    home = Home(path, socket_folder(path, longest_name), private=folder is None)
    lease = SupervisorConnection(home, make_plan)
    try:
        prepare_home(home, account)
        told = lease.take()
        yield LocalServer(
            told["url"], kind, told["version"], told["source"], kept, told["pid"], lease
        )
    finally:
        lease.give_back()
        if folder is None:
            shutil.rmtree(kept, ignore_errors=True)


def prepare_home(home: Home, account: Account | None) -> None:
    """Make the folder, private, but passable for the server's account if it has its own."""
    try:
        make_own_folder(home.path, 0o700 if os.geteuid() else 0o711)
    except OSError as reason:
        raise LocalServerUnavailable(f"{home.path} can't be used: {reason}") from reason
    if account is not None and (closed := closed_to(home.path, account)):
        raise LocalServerUnavailable(
            f"As root we run Postgres as {account.name!r}, and {closed} is closed to that account, "
            f"so its data can't be in {home.path}. Set EVOSAGA_STATE_DIR to a folder that all may "
            "pass through, or set EVOSAGA_DATABASE_URL."
        )
