"""The verb ``completion``: scripts that complete verbs and options, made by cyclopts."""

from __future__ import annotations

from typing import Annotated, Final, Literal

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

    script = app.generate_completion(shell=shell).rstrip()
    if shell == "zsh":  # made to be a file in a folder of $fpath; with this it can be eval'd, too
        script += _ZSH
    out.line(script)
    return DONE


_ZSH: Final = """

case "$funcstack[1]" in
  _evosaga|_cyclopts_evosaga) _cyclopts_evosaga "$@" ;;
  *) compdef _cyclopts_evosaga evosaga ;;
esac"""
