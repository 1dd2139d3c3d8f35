"""``alerts``, ``alerts receivers`` and ``alerts test`` over HTTP, with a key of no organization."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli.alerts import tell_alerts, tell_receivers, tell_test
from evosaga.orchestrator.cli.errors import WRONG, CliError
from evosaga.orchestrator.cli.remote.session import connect
from evosaga.orchestrator.client import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target

_TIMES: Final = {*("opened_at", "announced_at", "resolved_at"), *("failing_since", "delivered_at")}
_MOST: Final = 200
"""As many as the route gives at once."""


def alerts(*, all_: bool = False, limit: int = 50, target: Target, out: Output) -> int:
    """Show what is wrong there."""
    return asyncio.run(_alerts(target, all_, min(limit, _MOST), out))


def receivers(*, show_secrets: bool = False, target: Target, out: Output) -> int:
    """Show who is told there, and how each is doing."""
    if show_secrets:
        said = "secrets do not go over HTTP: run alerts receivers --show-secrets where they are set"
        raise CliError(WRONG, said)
    return asyncio.run(_receivers(target, out))


def test(*receivers: str, target: Target, out: Output) -> int:
    """Have the server send a test message to the receivers."""
    return asyncio.run(_test(target, receivers, out))


async def _test(target: Target, receivers: Sequence[str], out: Output) -> int:
    named = {"receiver": list(receivers)} if receivers else None
    async with connect(target) as client:
        try:
            answered = (await client.post("/alerts/test", params=named))["receivers"]
        except NotFound as error:
            # The route's own 404 says which receivers there are; another is an older server's.
            raise CliError(WRONG, error.message) if "receiver" in error.message else error from None
    return tell_test(answered, out)


async def _alerts(target: Target, resolved: bool, limit: int, out: Output) -> int:
    params = {"resolved": str(resolved).lower(), "limit": str(limit)}
    async with connect(target) as client:
        found = (await client.get("/alerts", params))["alerts"]
    return tell_alerts([_seconds(one) for one in found], out)


async def _receivers(target: Target, out: Output) -> int:
    async with connect(target) as client:
        found = (await client.get("/alerts", {"limit": "1"}))["receivers"]
    return tell_receivers([_seconds(one) for one in found], out)


def _seconds(one: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its times as the verb writes them without a server."""
    told = dict(one)
    for name in _TIMES & told.keys():
        if told[name] is not None:
            told[name] = datetime.fromisoformat(told[name]).isoformat(timespec="seconds")
    return told
