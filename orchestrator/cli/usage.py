"""Parses the words of the command line: a call to make, or a sentence on what is wrong."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Final

from cyclopts import (
    App,
    Argument,
    CoercionError,
    ConsumeMultipleError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from evosaga.orchestrator.cli.aliases import resolved
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.remote.dispatch import OWN_SERVER_OPTIONS, over_http
from evosaga.orchestrator.cli.verb_table import WHATSAPP
from evosaga.orchestrator.cli.verbs import app, common

_SERVER: Final = ("url", "api_key", "profile")
_EVERYWHERE: Final = (
    *("--json", "--debug", "--app", "--help", "--version"),
    *("--url", "--api-key", "--profile"),
)
"""The options of every verb, before it or behind it."""
_ALIKE: Final = 0.75
"""How much two words must have in common for the one to be meant by the other."""


@dataclass(frozen=True, slots=True)
class Call:
    """A verb with its arguments, or the help or version page of cyclopts."""

    function: Callable[..., Any]
    bound: inspect.BoundArguments
    json: bool = False
    debug: bool = False
    app: str | None = None
    server: Mapping[str, str] = field(default_factory=dict)
    """The options that name a server."""

    def make(self, out: Output) -> int:
        """Do it; the exit code."""
        if self.app is not None:
            os.environ["EVOSAGA_APP"] = self.app
        if not isinstance(getattr(self.function, "__self__", None), App):
            work = over_http(self.function, self.server, out)
            if work is self.function and self.function.__module__ in _WHATSAPP:
                _require_whatsapp()
            return int(work(*self.bound.args, **self.bound.kwargs, out=out))
        self.bound.arguments["console"] = out.console
        with out.console.capture() as page:
            self.function(*self.bound.args, **self.bound.kwargs)
        lines = (line.rstrip() for line in page.get().rstrip().splitlines())
        out.line(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)))
        return DONE


_WHATSAPP: Final = frozenset(f"evosaga.orchestrator.{name}" for name in WHATSAPP)
"""A server that is asked over HTTP says itself whether it runs WhatsApp."""


def _require_whatsapp() -> None:
    from evosaga.orchestrator import app
    from evosaga.orchestrator.config.settings import load_settings

    if not app.has_whatsapp(load_settings()):
        cure = "set EVOSAGA_EVOLUTION_URL to your Evolution API server, or EVOSAGA_WHATSAPP=true"
        raise CliError(WRONG, f"this verb is about WhatsApp, which is not run here: {cure}")


def read_words(words: Sequence[str]) -> Call:
    """What is asked for. Raises ``CliError`` when it makes no sense."""
    try:
        function, bound = _parsed(app.meta, resolved(words, [*app]))
        if function is not common:
            return Call(function, bound)
        given = {name: bound.kwargs[name] for name in _SERVER if bound.kwargs.get(name)}
        own = OWN_SERVER_OPTIONS.get(next(iter(bound.args), ""), ())
        handed_on = [f"--{n.replace('_', '-')}={given.pop(n)}" for n in own if n in given]
        function, inner = _parsed(app, (*bound.args, *handed_on))
        flags = {name: bound.kwargs.get(name, False) for name in ("json", "debug")}
        return Call(function, inner, **flags, app=bound.kwargs.get("app"), server=given)
    except CycloptsError as error:
        verb = " ".join(("evosaga", *(error.command_chain or ())))
        sentence = printable(_sentence(error)).rstrip(".")
        raise CliError(WRONG, f"{sentence} (see `{verb} --help`)") from None


def _parsed(of: App, words: Sequence[str]) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    function, bound, _ = of.parse_args(words, print_error=False, exit_on_error=False, verbose=False)
    return function, bound


def _sentence(error: CycloptsError) -> str:
    """In cyclopts' words, except where those say too little or too much."""
    match error:
        case UnknownCommandError(unused_tokens=[word, *_]):
            return _unknown("option" if word[:1] == "-" else "verb", word, app)
        case UnknownOptionError(token=token, argument_collection=known):
            names = chain.from_iterable(each.names for each in known if each.parse)
            return _unknown("option", token.keyword or token.value, names)
        case UnusedCliTokensError(unused_tokens=[*words]):
            return f"unexpected: {' '.join(map(repr, words))}"
        case MissingArgumentError(argument=argument) if argument and argument.name in (
            missing := _missing(error)
        ):
            return f"missing: {', '.join(missing)}"
        case ConsumeMultipleError(argument=argument) | MissingArgumentError(argument=argument) if (
            argument
        ):
            return _without_value(argument.name, error.root_input_tokens or ())
        case CoercionError(argument=argument, token=token) if argument and token:
            return _not_taken(argument, token.value, error)
    return str(error)


def _without_value(name: str, words: Sequence[str]) -> str:
    """What follows begins with a dash, so it was read as another option."""
    behind = dict(pairwise(words)).get(name)
    if behind is None:
        return f"{name} needs a value"
    return f"{name} needs a value; one that begins with a dash goes like {name}={behind}"


def _not_taken(argument: Argument, value: str, error: CoercionError) -> str:
    """Why an option does not take a value: what its converter says, or what it would take."""
    if choices := argument.get_choices():
        return f"{argument.name}: {value!r} is none of {', '.join(choices)}"
    if argument.hint is bool:
        return f"{argument.name} is given or not, and has no value"
    if argument.hint is int and argument.parameter.converter is None:
        return f"{argument.name}: {value!r} is not a whole number"
    return f"{argument.name}: {_cause(error) or error}"


def _unknown(what: str, word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, [*known, *_EVERYWHERE], 1, _ALIKE)
    return f"unknown {what} {word!r}" + (f", did you mean {close[0]}?" if close else "")


def _cause(error: BaseException | None) -> ValueError | None:
    """What a converter raised; cyclopts wraps that of a list's element twice."""
    while error is not None and not isinstance(error, ValueError):
        error = error.__cause__ or error.__context__
    return error


def _missing(error: CycloptsError) -> list[str]:
    """Every argument that is required and was not given."""
    assert error.app is not None
    given = {word.partition("=")[0] for word in error.root_input_tokens or ()}
    every = error.app.assemble_argument_collection()
    needed = (each for each in every if each.parse and each.required)
    return [each.name for each in needed if given.isdisjoint(each.names)]
