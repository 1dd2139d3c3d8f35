"""``integrations list`` and ``integrations show`` over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from evosaga.orchestrator.cli.integration_lists import (
    not_the_one,
    tell_integration,
    tell_integrations,
)
from evosaga.orchestrator.cli.remote.session import connect
from evosaga.orchestrator.client import NotFound

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target
    from evosaga.orchestrator.client import Client

_PAGE: Final = 100
"""As many as the route gives at once."""


def list_(
    *,
    attention: bool = False,
    limit: int = 20,
    target: Target,
    out: Output,
    **filters: str | None,
) -> int:
    """Show a page of integrations."""
    wanted = {name: value for name, value in filters.items() if value is not None}
    wanted |= {"attention": "true"} if attention else {}
    return asyncio.run(_list(target, limit, wanted, out))


async def _list(target: Target, limit: int, wanted: dict[str, str], out: Output) -> int:
    found: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    async with connect(target) as client:
        while True:
            asked = {"limit": str(min(_PAGE, limit - len(found)))}
            page = await client.get("/integrations", wanted | asked)
            first = first or page
            found += page["integrations"]
            if page["cursor"] is None or len(found) >= limit:
                break
            wanted["cursor"] = page["cursor"]
    told = {name: first[name] for name in ("count", "more", "previous")}
    return tell_integrations(told | {"integrations": found, "cursor": page["cursor"]}, out)


def show(reference: str, /, *, target: Target, out: Output) -> int:
    """Show one integration."""
    return asyncio.run(_show(target, reference, out))


async def _show(target: Target, reference: str, out: Output) -> int:
    async with connect(target) as client:
        one = await _one(client, reference)
    return tell_integration(one, out)


async def _one(client: Client, reference: str) -> dict[str, Any]:
    """The integration that is meant. Raises ``CliError`` for none, and for several."""
    try:
        return await client.get(f"/integrations/evolution/{quote(reference, safe='')}")
    except NotFound as error:
        if error.code != "unknown_instance":
            raise
    page = await client.get("/integrations", {"search": reference, "limit": "2"})
    found: list[dict[str, Any]] = page["integrations"]
    if len(found) == 1:
        return found[0]
    raise not_the_one(reference, page["count"])
