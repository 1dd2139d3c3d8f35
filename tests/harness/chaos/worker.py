"""``evosaga worker`` in a process that is forked, not started: a restart then costs no second.

Any other verb that is a process, such as ``api``, can be run the same way. What forks them has
imported everything and opened nothing. They end with it, and it with the run, even a killed one.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from evosaga.events import syncpoints
from evosaga.orchestrator.cli import main
from tests.support.preloaded import forkserver

_PR_SET_PDEATHSIG: Final = 1


def start_worker(
    environment: Mapping[str, str], log: Path, words: Sequence[str] = ("worker",)
) -> ForkServerProcess:
    """A process with these variables in its environment; what it says is added to the log."""
    given = (list(words), dict(environment), log)
    process = forkserver().Process(target=_work, args=given, daemon=True)
    process.start()
    return process


def _work(words: list[str], environment: dict[str, str], log: Path) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for name in [name for name in os.environ if name.startswith("EVOSAGA_")]:
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(log.parent)  # no .env of somebody's lies there
    syncpoints.arm_from_environment()
    sys.exit(main(words))
