"""``evosaga completion``: what makes a shell complete verbs and options."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from evosaga.orchestrator.cli.errors import DONE
from evosaga.orchestrator.cli.params import Out


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="your shell")],
    /,
    *,
    out: Out,
) -> int:
    """Print the script for one shell."""
    from evosaga.orchestrator.cli.verbs import app

    out.line(app.generate_completion(shell=shell).rstrip())
    return DONE
