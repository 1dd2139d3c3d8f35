"""Others that do the same work, to be run beside ours: a third is one file, and one line of PEERS.

None of them is a dependency. What theirs is made of, and nothing else, is in ``peer_<name>.py``,
which runs in a process of its own; what all of them share is in ``peer.py``. Nothing here imports
any of it.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Final

STREAM: Final = "peer:commands"
DONE: Final = "peer:done"
"""Where a peer's process tells how many of its creates are recorded as done."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the others. ``times``: how many times as fast as it one worker is to be, if any."""

    name: str
    module: str
    times: float | None
    share: int
    """It gets so many times fewer creates than ours, so that its rounds take about as long."""
    packages: Sequence[tuple[str, str]]
    """What it is imported as, and what pip calls it."""
    program: str = ""
    install: str = ""
    """How to get ``program``, which is found on PATH unless a variable names it."""
    arguments: Sequence[str] = ()
    """For its process, behind those that all of them are given."""


_RESTATE: Final = Peer(
    "Restate",
    "tests.harness.bench.peer_restate",
    times=3,
    share=4,
    packages=(("restate", "restate-sdk"), ("granian", "granian")),
    program="restate-server",
    install="npm install @restatedev/restate-server",
)
PEERS: Final = {
    "dbos": Peer(
        "DBOS", "tests.harness.bench.peer_dbos", times=10, share=5, packages=(("dbos", "dbos"),)
    ),
    "restate": _RESTATE,  # as it is shipped
    "restate-tuned": replace(
        _RESTATE, name="Restate, tuned", times=None, share=2, arguments=("tuned",)
    ),
}


def program(name: str) -> str | None:
    """Where a program is: its variable (``RESTATE_SERVER``, say) goes before PATH."""
    named = os.environ.get(_variable(name))
    return shutil.which(named or name)


def missing(peer: Peer) -> str | None:
    """What has to be installed before it can be run, as a sentence."""
    absent = [pip for module, pip in peer.packages if find_spec(module) is None]
    needed = [f".venv/bin/pip install {' '.join(absent)}"] if absent else []
    if peer.program and program(peer.program) is None:
        needed.append(
            f"{peer.install}, with {peer.program} on PATH or named by {_variable(peer.program)}"
        )
    return f"{peer.name} has to be installed first: {'; and '.join(needed)}" if needed else None


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
