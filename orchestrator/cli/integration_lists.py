"""The verbs ``integrations list`` and ``integrations show``."""

from __future__ import annotations

import asyncio
import shlex
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from cyclopts import App, Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.help_page import verb_options
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.show import clock
from evosaga.orchestrator.cli.verb_table import DATABASE, SERVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView
    from evosaga.orchestrator.whatsapp.integrations.search import Wanted

_SEARCHED = "a clinic's name, a phone number in any form, or a part of an id"

app = App(
    name="integrations",
    usage="evosaga integrations [list] [--search TEXT] …, or evosaga integrations show NAME",
    **verb_options("integrations list --search odonto", [*SERVER, DATABASE]),
)


@app.default
def list_(
    *,
    search: Annotated[params.Text | None, Parameter(help=_SEARCHED)] = None,
    status: Literal["pending", "connected", "disconnected", "deleting"] | None = None,
    organization_id: params.Uuid | None = None,
    server: params.Name | None = None,
    attention: Annotated[bool, Parameter(help="only those that need attention")] = False,
    sort: Literal["newest", "oldest", "name", "-name"] = "newest",
    limit: params.Page = 20,
    cursor: params.Text | None = None,
    out: params.Out,
) -> int:
    """Show a page of integrations.

    Args:
        status: only these
        organization_id: only its integrations
        server: only those on this Evolution server
        sort: newest (the default), oldest, name or -name
        cursor: where the page before ended
    """
    from evosaga.orchestrator.whatsapp.integrations.search import Wanted

    whose = UUID(organization_id) if organization_id else None
    wanted = Wanted(search, status, whose, server, attention, sort)
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_list(settings, wanted, limit, cursor, out))


app.command(
    list_,
    name="list",
    help="List integrations: search them, filter and sort them.",
    **verb_options("integrations list --attention", [*SERVER, DATABASE]),
)


def show(
    reference: Annotated[
        params.Text, Parameter(name="NAME", help=f"an instance's name, or {_SEARCHED}")
    ],
    /,
    *,
    out: params.Out,
) -> int:
    """Show one integration."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_show(settings, reference, out))


app.command(
    show,
    help="Show one integration, by its instance's name or by anything that only it is found by.",
    **verb_options("integrations show odonto", [*SERVER, DATABASE]),
)


async def _list(
    settings: Settings, wanted: Wanted, limit: int, cursor: str | None, out: Output
) -> int:
    from evosaga.orchestrator.queries.sagas import BadCursor
    from evosaga.orchestrator.whatsapp.integrations.search import list_integrations

    async with connections.postgres(settings) as pool:
        try:
            found = await list_integrations(pool, wanted, limit=limit, cursor=cursor)
        except BadCursor as error:
            raise CliError(WRONG, str(error)) from None
    page = [_document(view) for view in found.integrations]
    ways = {"cursor": found.older, "previous": found.newer}
    told = {"integrations": page, "count": found.count, "more": found.more} | ways
    return tell_integrations(told, out)


def tell_integrations(page: Mapping[str, Any], out: Output) -> int:
    """Show a page as the HTTP API has it; the exit code."""
    found = page["integrations"]
    if out.json:
        out.data(dict(page))
        return DONE
    if not found:
        out.note("no integration fits: `evosaga integrations list` shows all")
        return DONE
    out.table([_row(one) for one in found], wrap=("name",))
    counted = f"{page['count']}+" if page["more"] else f"{page['count']}"
    out.line(f"{counted} {'integration' if counted == '1' else 'integrations'}")
    if page["cursor"]:
        out.note(f"there are more: --cursor {page['cursor']}")
    return DONE


def _row(one: Mapping[str, Any]) -> dict[str, str]:
    state = one["connection"] if one["connection"] not in (None, one["status"]) else None
    return {
        "status": f"{one['status']} ({state})" if state else one["status"],
        "instance": one["instance_name"] or "",
        "number": one["whatsapp_number"] or "",
        "organization": str(one["organization_id"] or ""),
        "name": one["name"] or "",
    }


async def _show(settings: Settings, reference: str, out: Output) -> int:
    async with connections.postgres(settings) as pool:
        view = await _one(pool, reference)
    return tell_integration(_document(view), out)


def tell_integration(one: Mapping[str, Any], out: Output) -> int:
    """Show one integration as the HTTP API has it; the exit code."""
    if out.json:
        out.data(dict(one))
        return DONE
    last = one["last_saga"]
    facts = {
        "name": one["name"],
        "instance": one["instance_name"],
        "status": one["status"],
        "connection": _connection(one),
        "number": one["whatsapp_number"],
        "organization": one["organization_id"],
        "clinic": one["clinic_id"],
        "channel": one["channel"],
        "server": one["server"],
        "enabled": "yes" if one["enabled"] else "no",
        "integration": one["integration_id"],
        "made": _clock(one["created_at"]),
        "changed": _clock(one["updated_at"]),
        "last saga": f"{last['saga']} {last['saga_id']}, {last['status']}" if last else None,
    }
    for name, value in facts.items():
        if value is not None:
            out.wrapped(printable(f"{name + ':':<14}{value}"))
    return DONE


def _connection(one: Mapping[str, Any]) -> str | None:
    since = _clock(one["connection_since"])
    return f"{one['connection']}{f' since {since}' if since else ''}" if one["connection"] else None


def _clock(at: str | None) -> str | None:
    return clock(datetime.fromisoformat(at)) if at else None


async def _one(pool: Any, reference: str) -> IntegrationView:
    """The integration that is meant. Raises ``CliError`` for none, and for several."""
    from evosaga.orchestrator.whatsapp.integrations.queries import find_integration
    from evosaga.orchestrator.whatsapp.integrations.search import Wanted, list_integrations

    if (view := await find_integration(pool, reference)) is not None:
        return view
    found = await list_integrations(pool, Wanted(search=reference), limit=2)
    if len(found.integrations) == 1:
        return found.integrations[0]
    raise not_the_one(reference, found.count)


def not_the_one(reference: str, count: int) -> CliError:
    """The trouble when none or several are found."""
    if not count:
        cure = "see `evosaga integrations list`"
        return CliError(WRONG, f"no integration is found by {reference!r}: {cure}")
    cure = f"name one of them: evosaga integrations list --search {shlex.quote(reference)}"
    return CliError(WRONG, f"{count} integrations are found by {reference!r}; {cure}")


def _document(view: IntegrationView) -> dict[str, Any]:
    """As the HTTP API shows it."""
    from evosaga.orchestrator.api.schemas import integration_shape

    return integration_shape(view).model_dump(mode="json")
