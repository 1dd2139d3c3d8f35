"""Operating-system helpers: socket peers, child processes, shared memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
IPC_RMID = 0


def listener_at(address: str | tuple[str, int]) -> int | None:
    """The pid of the process that listens on a Unix socket, according to the kernel."""
    if not isinstance(address, str):
        return None
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(address)
            if sys.platform == "linux":
                found = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
            else:
                found = client.getsockopt(0, 2, 4)  # SOL_LOCAL, LOCAL_PEERPID
        except OSError:
            return None
    return int.from_bytes(found, sys.byteorder) or None


def end_with_parent(quit_signal: int) -> Callable[[], None] | None:
    """A function that a child runs before exec, so that it ends with its parent (Linux only)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    guardian = os.getpid()

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, quit_signal, 0, 0, 0)
        if os.getppid() != guardian:  # the parent died before the call above
            os._exit(1)

    return ask


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    if sys.platform == "linux":
        parents = {}
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{int(entry)}/stat") as stat:
                # The name, in parentheses, may hold any character; state and parent follow it.
                parents[int(entry)] = int(stat.read().rpartition(")")[2].split()[1])
    else:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)  # noqa: S607
        parents = dict(tuple(map(int, line.split())) for line in listed.stdout.splitlines())
    return [child for child, parent in parents.items() if parent == pid]


def forget_shared_memory(data: str) -> None:
    """Free the few bytes of System V shared memory that a killed Postgres leaves behind."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open(os.path.join(data, "postmaster.pid")) as file:
            _key, segment = file.read().splitlines()[6].split()
        ctypes.CDLL(None).shmctl(int(segment), IPC_RMID, None)
