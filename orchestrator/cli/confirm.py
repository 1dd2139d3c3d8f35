"""Asking a person before something is done that can't be had back."""

from __future__ import annotations

import sys

from evosaga.orchestrator.cli.output import Output, printable


def confirmed(question: str, out: Output) -> bool:
    """Whether the person at the terminal agrees; True without a terminal."""
    if not out.terminal or not sys.stdin.isatty():
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def agreed_to_delete(instance_name: str, out: Output) -> bool:
    """Whether the person at the terminal wants that; True where nobody is there to be asked."""
    named = printable(instance_name)
    if confirmed(f"delete {named} from Evolution, Postgres and Redis for good?", out):
        return True
    out.note("nothing was done")
    return False
