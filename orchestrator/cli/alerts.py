"""The verb ``alerts``: what is wrong, who is told, and a test of that."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.help_page import verb_options
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.show import clock
from evosaga.orchestrator.cli.verb_table import DATABASE, SERVER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.maintenance.alerts.dispatcher import Posting

app = App(
    name="alerts",
    usage="evosaga alerts [--all], evosaga alerts test [RECEIVER …], or evosaga alerts receivers",
    **verb_options("alerts --all", [*SERVER, DATABASE]),
)
_Receiver = Annotated[params.Text, Parameter(help="a receiver's name; none: all")]


@app.default
def alerts(
    *,
    all_: Annotated[bool, Parameter(name="--all", help="those that are over, too")] = False,
    limit: params.Page = 50,
    out: params.Out,
) -> int:
    """Show what is wrong now, the gravest first, and where the runbook says what to do."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_alerts(settings, all_, limit, out))


def test(*receivers: _Receiver, out: params.Out) -> int:
    """Send a test message to receivers, and say what each answered."""
    from evosaga.orchestrator.config.settings import load_settings

    posting = _posting(load_settings())
    if unknown := [name for name in receivers if name not in posting.receivers]:
        known = ", ".join(posting.receivers) or "none is configured"
        raise CliError(WRONG, f"there is no receiver {unknown[0]!r} (there is: {known})")
    if not posting.receivers:
        raise CliError(WRONG, f"no receiver is configured: {_CURE}")
    return asyncio.run(_test(posting, receivers or tuple(posting.receivers), out))


def receivers(*, show_secrets: bool = False, out: params.Out) -> int:
    """Show who is told of alerts and events, and how each is doing.

    Args:
        show_secrets: show the secret that verifies what a receiver is sent
    """
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_receivers(settings, show_secrets, out))


app.command(
    test,
    help="Send a test message to the receivers, now and from here, and show what they answer.\n\n"
    "Exit code 1 when one of them did not take it.",
    **verb_options("alerts test", SERVER),
)
app.command(
    receivers,
    help="Show who is told, how each is doing, and with --show-secrets what verifies a message.",
    **verb_options("alerts receivers --show-secrets", [*SERVER, DATABASE]),
)
_CURE = "set EVOSAGA_ALERTS_URL, or EVOSAGA_RECEIVERS"


def _posting(settings: Settings) -> Posting:
    from evosaga.orchestrator.maintenance.alerts.dispatcher import Posting

    return Posting.of(settings)


async def _alerts(settings: Settings, resolved: bool, limit: int, out: Output) -> int:
    from evosaga.orchestrator.maintenance.alerts.view import listing

    async with connections.postgres(settings) as pool:
        found = await listing(pool, resolved=resolved, limit=limit)
    return tell_alerts([one.told(settings.runbook_url) for one in found], out)


def tell_alerts(found: Sequence[Mapping[str, Any]], out: Output) -> int:
    """Show alerts as JSON has them; the exit code."""
    if out.json:
        out.data({"alerts": list(found)})
    elif not found:
        out.note("nothing is wrong that anybody would have to be told")
    else:
        out.table([_row(one) for one in found], wrap=("what", "cure", "runbook"))
    return DONE


def _row(one: Mapping[str, Any]) -> dict[str, str]:
    return {
        "alert": str(one["id"]),
        "state": one["status"],
        "severity": one["severity"],
        "since": clock(datetime.fromisoformat(one["opened_at"])),
        "what": printable(one["message"]),
        "cure": printable(one["cure"]),
        "runbook": printable(one["runbook"]),
    }


async def _test(posting: Posting, names: Sequence[str], out: Output) -> int:
    from evosaga.orchestrator.maintenance.alerts.testing import send_test

    answers = await asyncio.gather(*(send_test(posting, name) for name in names))
    told = [
        {"receiver": name, "delivered": answer.ok, "error": answer.error or None}
        for name, answer in zip(names, answers, strict=True)
    ]
    return tell_test(told, out)


def tell_test(found: Sequence[Mapping[str, Any]], out: Output) -> int:
    """Show what each receiver made of the test message; the exit code."""
    if out.json:
        out.data({"receivers": list(found)})
    else:
        for one in found:
            out.line(printable(f"{one['receiver']}: {one['error'] or 'accepted'}"))
    return DONE if all(one["delivered"] for one in found) else UNFINISHED


async def _receivers(settings: Settings, show_secrets: bool, out: Output) -> int:
    from evosaga.orchestrator.maintenance.alerts.messages import keys_of, told_secret
    from evosaga.orchestrator.maintenance.alerts.view import receivers as read

    posting = _posting(settings)
    async with connections.postgres(settings) as pool:
        found = await read(pool, posting.receivers)
    secrets: dict[str, list[str]] = {
        name: [told_secret(key) for key in keys_of(name, one, posting.secrets)]
        for name, one in posting.receivers.items()
        if show_secrets
    }
    told = [
        one.told() | ({"secrets": secrets[one.name]} if one.name in secrets else {})
        for one in found
    ]
    return tell_receivers(told, out)


def tell_receivers(found: Sequence[Mapping[str, Any]], out: Output) -> int:
    """Show receivers as JSON has them; the exit code."""
    if out.json:
        out.data({"receivers": list(found)})
    elif not found:
        out.note(f"no receiver is configured: {_CURE}")
    else:
        out.table([_line(one) for one in found], wrap=("events", "error"))
    return DONE


def _line(one: Mapping[str, Any]) -> dict[str, str]:
    line = {
        "receiver": one["name"],
        "format": one["format"],
        "alerts": "yes" if one["alerts"] else "",
        "events": " ".join(one["events"]),
        "waiting": str(one["waiting"] or ""),
        "given up": str(one["given_up"] or ""),
        "error": printable(one["error"] or ""),
    }
    return line | ({"secret": " ".join(one["secrets"])} if "secrets" in one else {})
