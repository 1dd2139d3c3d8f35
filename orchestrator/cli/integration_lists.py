"""The verbs ``integrations list`` and ``integrations show``, which need nothing but Postgres."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from cyclopts import App, Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.help_page import verb_options
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.show import clock
from evosaga.orchestrator.cli.verb_table import DATABASE

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView
    from evosaga.orchestrator.whatsapp.integrations.search import IntegrationList, Wanted

_SEARCHED = "a clinic's name, a phone number in any form, or a part of an id"

app = App(
    name="integrations",
    usage="evosaga integrations [list] [--search TEXT] …, or evosaga integrations show NAME",
    **verb_options("integrations list --search odonto", [DATABASE]),
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
    **verb_options("integrations list --attention", [DATABASE]),
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
    **verb_options("integrations show wa-0197a0de-0000-7000-8000-000000000003", [DATABASE]),
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
    if out.json:
        page = [_document(view) for view in found.integrations]
        ways = {"cursor": found.older, "previous": found.newer}
        out.data({"integrations": page, "count": found.count, "more": found.more} | ways)
        return DONE
    _draw(found, out)
    return DONE


def _draw(found: IntegrationList, out: Output) -> None:
    if not found.integrations:
        out.note("no integration fits: `evosaga integrations list` shows all")
        return
    out.table([_row(view) for view in found.integrations], spare=("organization", "number"))
    counted = f"{found.count}+" if found.more else f"{found.count}"
    out.line(f"{counted} {'integration' if counted == '1' else 'integrations'}")
    if found.older:
        out.note(f"there are more: --cursor {found.older}")


def _row(view: IntegrationView) -> dict[str, str]:
    state = view.connection if view.connection not in (None, view.status) else None
    return {
        "status": f"{view.status} ({state})" if state else view.status,
        "instance": view.instance_name or "",
        "number": view.whatsapp_number or "",
        "organization": str(view.organization_id or ""),
        "name": view.name or "",
    }


async def _show(settings: Settings, reference: str, out: Output) -> int:
    async with connections.postgres(settings) as pool:
        view = await _one(pool, reference)
    told = _document(view)
    if out.json:
        out.data(told)
        return DONE
    last = told.pop("last_saga")
    facts = {
        "name": view.name,
        "instance": view.instance_name,
        "status": view.status,
        "connection": _connection(view),
        "number": view.whatsapp_number,
        "organization": view.organization_id,
        "clinic": view.clinic_id,
        "channel": view.channel,
        "server": view.server,
        "enabled": "yes" if view.enabled else "no",
        "integration": view.id,
        "made": clock(view.created_at) if view.created_at else None,
        "changed": clock(view.updated_at) if view.updated_at else None,
        "last saga": f"{last['saga']} {last['saga_id']}, {last['status']}" if last else None,
    }
    for name, value in facts.items():
        if value is not None:
            out.wrapped(f"{name + ':':<14}{value}")
    return DONE


def _connection(view: IntegrationView) -> str | None:
    since = f" since {clock(view.connection_since)}" if view.connection_since else ""
    return f"{view.connection}{since}" if view.connection else None


async def _one(pool: Any, reference: str) -> IntegrationView:
    """The integration that is meant. Raises ``CliError`` for none, and for several."""
    from evosaga.orchestrator.whatsapp.integrations.queries import find_integration
    from evosaga.orchestrator.whatsapp.integrations.search import Wanted, list_integrations

    if (view := await find_integration(pool, reference)) is not None:
        return view
    found = await list_integrations(pool, Wanted(search=reference), limit=2)
    if len(found.integrations) == 1:
        return found.integrations[0]
    if not found.integrations:
        cure = "see `evosaga integrations list`"
        raise CliError(WRONG, f"no integration is found by {reference!r}: {cure}")
    cure = f"name one of them: evosaga integrations list --search {reference!r}"
    raise CliError(WRONG, f"{found.count} integrations are found by {reference!r}; {cure}")


def _document(view: IntegrationView) -> dict[str, Any]:
    """As the HTTP API shows it."""
    from evosaga.orchestrator.api.schemas import integration_shape

    return integration_shape(view).model_dump(mode="json")
