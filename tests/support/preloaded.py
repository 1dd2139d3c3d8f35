"""What a fork server has imported already, so that the processes it forks are up at once.

To start Python and import the product takes most of a second, many times what a verb of the
command line or the first second of a worker takes. What is forked is a process like any other:
with an environment, a folder, streams, signals and an exit code of its own.
"""

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from evosaga.orchestrator.cli import main, qr, reconcile


def forkserver() -> ForkServerContext:
    """It is started with the first process that it forks, and ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.everything"])
    return context


def run_verb(
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    out: Connection,
    err: Connection,
) -> None:
    """``python -W error -m evosaga.orchestrator.cli`` from where its imports are over."""
    _run(arguments, environment, folder, (os.open(os.devnull, os.O_RDONLY), out, err))


def run_hasty_verb(
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    out: Connection,
    err: Connection,
) -> None:
    """The same without most of the seconds that ``reconcile`` and ``qr`` wait."""
    vars(reconcile)["_BETWEEN"] = 0.2
    vars(qr)["_PATIENCE"] = 1.0
    run_verb(arguments, environment, folder, out, err)


def run_verb_as(
    user: int,
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    out: Connection,
    err: Connection,
) -> None:
    """The same as another user, whom root becomes in that folder, as ``sudo -u`` does."""
    given = (os.open(os.devnull, os.O_RDONLY), out, err)
    _run(arguments, environment, folder, given, user)


def run_pytest(
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    out: Connection,
    err: Connection,
) -> None:
    """``python -m pytest`` in that folder."""
    import pytest

    def program(words: Sequence[str]) -> int:
        warnings.resetwarnings()
        return int(pytest.main(list(words)))

    sys.path.insert(0, str(folder))
    given = (os.open(os.devnull, os.O_RDONLY), out, err)
    _run(arguments, environment, folder, given, program=program)


def run_at_terminal(
    arguments: Sequence[str], environment: dict[str, str], folder: Path, terminal: Connection
) -> None:
    """The same where a person sits: all three streams are the terminal."""
    _run(arguments, environment, folder, (terminal.fileno(), terminal, terminal))


def _run(
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    streams: tuple[int, Connection, Connection],
    user: int | None = None,
    program: Callable[[Sequence[str]], int] = main,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    given, out, err = streams
    os.dup2(given, 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    sys.argv = ["evosaga", *arguments]
    warnings.simplefilter("error")
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    raise SystemExit(program(arguments))
