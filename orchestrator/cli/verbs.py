"""The verbs as cyclopts knows them; each one's function is imported when it is called."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import App, Group, Parameter

from evosaga.orchestrator.cli.front_page import release
from evosaga.orchestrator.cli.help_page import COMMON, OPTIONS, HelpPage, verb_options
from evosaga.orchestrator.cli.verb_table import DEBUG, JSON, SUMMARY, USAGE, VERBS, Verb

app: Final = App(
    name="evosaga",
    help=SUMMARY,
    usage=USAGE,
    help_format="plaintext",
    help_formatter=HelpPage(),
    version=release,
    group_parameters=OPTIONS,
    group_arguments=Group("Arguments", sort_key=1),
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=False),
)
for _flag in ("--help", "--version"):
    app[_flag].group = (COMMON,)


@app.meta.default
def common(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    json: Annotated[bool, Parameter(help=JSON, group=COMMON)] = False,
    debug: Annotated[bool, Parameter(help=DEBUG, group=COMMON)] = False,
) -> None:
    """Only its signature is used: ``usage.read_words`` parses the words that are left."""


_groups: Final[dict[str, Group]] = {}


def _register(verb: Verb) -> None:
    own = verb_options(verb.example or verb.name, verb.needs)
    own["usage"] = f"evosaga {verb.usage}" if verb.usage else None
    app.command(
        f"evosaga.orchestrator.{verb.work}",
        name=verb.name,
        help=f"{verb.sentence}\n\n{verb.more}".strip(),
        group=_groups.setdefault(verb.group, Group(verb.group, sort_key=10 + len(_groups))),
        sort_key=len(list(app)),
        # An ``App`` has them already.
        **({} if verb.name in ("events", "alerts") else own),
    )


for _each in VERBS:
    _register(_each)
