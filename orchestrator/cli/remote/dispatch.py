"""Whether a verb goes over HTTP, and the function that does it then."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli.errors import WRONG, CliError

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output

_PACKAGE: Final = "evosaga.orchestrator.cli."
_OVER_HTTP: Final = {
    "show:status": "sagas:status",
    "show:list_sagas": "sagas:list_sagas",
    "why:why": "sagas:why",
    "events:events": "sagas:events",
    "integrations:create": "steering:create",
    "integrations:delete": "steering:delete",
    "control:replay": "steering:replay",
    "control:cancel": "steering:cancel",
    "qr:qr": "integrations:qr",
    "health:health": "integrations:health",
    "reconcile:reconcile": "integrations:reconcile",
    "recover:recover": "recover:recover",
    "dead_letters:letters": "dead_letters:letters",
    "alerts:alerts": "alerts:alerts",
    "alerts:receivers": "alerts:receivers",
    "alerts:test": "alerts:test",
    "start:start": "start:start",
    "start:sagas": "start:sagas",
    "integration_lists:list_": "integration_lists:list_",
    "integration_lists:show": "integration_lists:show",
}
"""The function of a verb, and the one that does the same over HTTP, with the same arguments."""
_APP: Final = "EVOSAGA_APP"
_LOCAL_WITH_APP: Final = ("start:sagas",)
"""Needs no server, and with a domain of one's own at hand that is what is asked for."""
OWN_SERVER_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "login": ("url", "api_key", "profile"),
    "logout": ("profile",),
    "simulate-evolution": ("api_key",),
}
"""Verbs that have options of these names themselves."""


def over_http(
    function: Callable[..., Any], given: Mapping[str, str], out: Output
) -> Callable[..., Any]:
    """What does the verb: the function itself, or the one over HTTP. Raises ``CliError``.

    ``given`` are the options that name a server.
    """
    module = function.__module__
    name = f"{module.removeprefix(_PACKAGE)}:{function.__name__}"
    there = _OVER_HTTP.get(name) if module.startswith(_PACKAGE) else None
    if there is None:
        if given:
            option = f"--{next(iter(given)).replace('_', '-')}"
            said = (
                f"this verb needs the servers themselves and does not go over HTTP: leave {option}"
            )
            raise CliError(WRONG, f"{said} out")
        return function
    from evosaga.orchestrator.cli import running_dev
    from evosaga.orchestrator.cli.remote import target

    wish = target.Wish(**given)
    variables = target.variables(wish)
    chosen = target.target_of(wish, variables, dev_runs=bool(running_dev.found()))
    if chosen is None or (chosen.silent and name in _LOCAL_WITH_APP and os.environ.get(_APP)):
        return function
    if chosen.silent:
        out.note(f"evosaga: at {chosen.url} ({chosen.source})")
    where, what = there.split(":")
    work: Callable[..., Any] = getattr(importlib.import_module(f"{_PACKAGE}remote.{where}"), what)
    return functools.partial(work, target=chosen)
