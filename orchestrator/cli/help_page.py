"""The pages of ``VERB --help``: two columns without frames, then an example and the variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from cyclopts import Group

from evosaga.orchestrator.cli import verb_table
from evosaga.orchestrator.cli.front_page import entries

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

OPTIONS: Final = Group("Options", sort_key=2)
COMMON: Final = Group(verb_table.COMMON, sort_key=100)

_VARIABLES: Final = {
    "EVOSAGA_URL": "a server's address: then neither a database nor anything else is needed",
    "EVOSAGA_API_KEY": "one of that server's EVOSAGA_API_KEYS",
    "EVOSAGA_PROFILE": "the server and key that `evosaga login` has kept under this name",
    "EVOSAGA_DATABASE_URL": "postgresql://…; without it the embedded Postgres is used",
    "EVOSAGA_REDIS_URL": "redis://…, rediss://…, unix://…, redis+cluster://h1,h2/ or "
    "redis+sentinel://h1,h2/service/0; without it the embedded Valkey is used",
    "EVOSAGA_EVOLUTION_URL": "the Evolution API server, https://…",
    "EVOSAGA_EVOLUTION_API_KEY": "its global API key",
    "EVOSAGA_SECRET_KEY": "32 bytes or more, for ownership tokens: openssl rand -hex 32",
    "EVOSAGA_API_KEYS": "name:key or name:key:organization_id, comma separated",
    "EVOSAGA_HOST": "where HTTP listens; 127.0.0.1 without it",
    "EVOSAGA_PORT": "8080 without it",
}


class HelpPage:
    """How cyclopts draws a page."""

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:
        """Draw the first line, which cyclopts gives without its first word."""
        console.print(f"Usage: {str(usage).strip()}", markup=False, style="bold")
        console.print()

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Draw a group of verbs or options."""
        from rich.console import Group as Lines
        from rich.table import Table
        from rich.text import Text

        if not panel.entries:
            return
        table = Table.grid(padding=(0, 2))
        for entry in panel.entries:
            name = ", ".join(entry.display_labels_with_metavar)
            choices = [Text(f"one of {', '.join(entry.choices)}")] if entry.choices else []
            text = Lines(entry.description, *choices)
            table.add_row("", Text(name, style="cyan", no_wrap=True), text)
        console.print(Text(f"{panel.title}:", style="bold"))
        console.print(table)
        console.print()


def verb_options(example: str, needs: Sequence[str]) -> dict[str, Any]:
    """What an ``App`` of cyclopts takes for the page of one verb."""
    lines = ["example:", f"  evosaga {example}"]
    if needs:
        lines += ["", "environment (or a file .env):"]
        lines += entries(((name, _VARIABLES[name]) for name in needs), 28)
    return {"help_epilogue": "\n".join(lines), "version_flags": (), "group_parameters": OPTIONS}
