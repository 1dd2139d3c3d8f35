"""The server process of a supervisor: prepare, start, stop and kill it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import NamedTuple

from evosaga.orchestrator.local.os_support import (
    children_of,
    end_with_parent,
    forget_shared_memory,
    listener_at,
)

START_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.01


class Failed(Exception):
    """The server could not be started. The message is for the owner and its user."""


class ServerSpec(NamedTuple):
    """All that the supervisor of one server needs; sent as JSON."""

    facts: dict[str, str]  # sent to each owner: url, version, source
    folders: list[str]  # made before anything else, for the server's account alone
    data: str  # filled by `prepare` when it doesn't exist
    prepare: list[tuple[list[str], str]]  # commands, and what each reads from standard input
    command: list[str]
    address: str | tuple[str, int]  # a Unix socket, or a host and a port
    greeting: str  # hexadecimal: what is sent to see whether the server is ready
    welcome: str  # what the answer of a ready server begins with
    quit_signal: int  # an orderly stop that keeps the data
    abandon_signal: int  # a quick stop, when the data is thrown away afterwards
    control: str  # the socket for further owners
    in_use: str  # locked by the server and its children while one of them lives
    log: str
    remove: list[str]  # temporary files and folders
    account: tuple[int, int] | None = None  # user and group, when they aren't our own
    kill: tuple[str, ...] = ()  # a command that kills what no signal reaches


class ManagedServer:
    """One server and its process, if it runs."""

    def __init__(self, plan: ServerSpec) -> None:
        self.plan = plan
        self.server: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process id; 0 while it doesn't run."""
        return self.server.pid if self.server is not None and self.runs() else 0

    def runs(self) -> bool:
        """Whether the server's process is alive, ready or not."""
        return self.server is not None and self.server.poll() is None

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers. Raises Failed."""
        plan = self.plan
        if self.runs():
            return
        held = claim_data(plan)
        try:
            for folder in plan.folders:
                self.make_folder(folder)
            if not os.path.exists(plan.data):
                self.prepare(held)
            self.server = self.run(plan.command, held)
        finally:
            os.close(held)  # the server has its own hold on the lock
        deadline = time.monotonic() + START_SECONDS
        while not answers(plan):
            if self.server.poll() is not None:
                raise Failed(f"it ended at once:\n{self.last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise Failed(f"no answer in {START_SECONDS:.0f} s:\n{self.last_words()}")
            time.sleep(POLL_SECONDS)

    def prepare(self, held: int) -> None:
        """Fill a fresh folder, and rename it only when it is complete."""
        fresh = f"{self.plan.data}.fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        self.make_folder(fresh)
        for command, words in self.plan.prepare:
            done = self.run(command, held, words)
            if done.wait() != 0:
                raise Failed(f"{command[0]} failed:\n{self.last_words()}")
        os.rename(fresh, self.plan.data)
        parent = os.open(os.path.dirname(fresh), os.O_RDONLY)
        os.fsync(parent)  # a power cut may otherwise lose the new name, and the data with it
        os.close(parent)

    def make_folder(self, folder: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if self.plan.account is not None:
            os.chown(folder, *self.plan.account)

    def run(self, command: list[str], held: int, words: str = "") -> subprocess.Popen[bytes]:
        """Start a command as the server's account; it ends when this process ends."""
        account = self.plan.account
        with open(self.plan.log, "ab") as log:
            started = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE if words else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                pass_fds=(held,),
                preexec_fn=end_with_parent(self.plan.quit_signal),  # noqa: PLW1509 (one thread)
                user=account[0] if account else None,
                group=account[1] if account else None,
                extra_groups=[] if account else None,
            )
        if started.stdin is not None:
            # Closing writes what is buffered. What ended before it read that says why itself.
            with contextlib.suppress(BrokenPipeError), started.stdin:
                started.stdin.write(words.encode())
        return started

    def stop(self, how: int) -> None:
        """Stop the server with a signal, or with SIGKILL when that takes too long."""
        if self.server is None or not self.runs():
            return
        self.server.send_signal(how)
        try:
            self.server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the server and its children, as in a crash."""
        if self.server is None or not self.runs():
            return
        self.server.send_signal(signal.SIGSTOP)  # so that it forks no more children
        for pid in (*children_of(self.server.pid), self.server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.plan.kill:
            subprocess.run(self.plan.kill, capture_output=True, check=False)  # noqa: S603
        self.server.wait()

    def end(self) -> None:
        """Stop the server and remove everything temporary."""
        self.stop(self.plan.abandon_signal if self.plan.remove else self.plan.quit_signal)
        if self.plan.remove:
            forget_shared_memory(self.plan.data)
        for folder in self.plan.remove:
            shutil.rmtree(folder, ignore_errors=True)

    def last_words(self) -> str:
        with open(self.plan.log, errors="replace") as log:
            return "".join(log.readlines()[-12:]).strip()


def claim_data(plan: ServerSpec) -> int:
    """Lock the data; a server that a crash left running is stopped first.

    The lock belongs to the processes that inherited it, so it is free when, and only when, the last
    of them is gone. Raises Failed.
    """
    held = os.open(plan.in_use, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + STOP_SECONDS
    asked = False
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except BlockingIOError:
            pass
        pid = None if asked else listener_at(plan.address)
        if pid is not None:
            asked = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, plan.quit_signal)
        if time.monotonic() > deadline:
            os.close(held)
            raise Failed(f"a server left over from before still uses {plan.data}")
        time.sleep(POLL_SECONDS)


def answers(plan: ServerSpec) -> bool:
    """Whether the server accepts a client."""
    unix = isinstance(plan.address, str)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client:
        client.settimeout(1)
        try:
            client.connect(plan.address if unix else tuple(plan.address))
            client.sendall(bytes.fromhex(plan.greeting))
            return client.recv(64).startswith(plan.welcome.encode())
        except OSError:
            return False
