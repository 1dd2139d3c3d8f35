"""The list of integrations: searched, filtered, counted, sorted, in both directions."""

from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.auth import Caller, visible
from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts, see_other
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.api.reads import reads_of
from evosaga.orchestrator.queries.sagas import BadCursor
from evosaga.orchestrator.whatsapp.integrations import words
from evosaga.orchestrator.whatsapp.integrations.search import (
    SORTS,
    STATUSES,
    IntegrationList,
    Sort,
    Wanted,
    list_integrations,
)

router: Final = page_router()

_HERE: Final = f"{ROOT}/integrations"
_PAGE: Final = 50
_FILTERS: Final = ("search", "status", "organization", "server", "attention")
_NONE: Final = IntegrationList([], 0, False, None, None)
_SORTED: Final[Mapping[Sort, str]] = {
    "newest": "newest first",
    "oldest": "oldest first",
    "name": "by name",
    "-name": "by name, backwards",
}


@router.get(_HERE)
async def listed(request: Request, who: Reader) -> Response:
    """A page of integrations. Invalid parameters are reported on it."""
    here = parts(request)
    asked, ignored = _understood(request.query_params, list(here.services.servers))
    wanted = _wanted(asked, who)
    try:
        found = (
            await list_integrations(
                await reads_of(request),
                wanted,
                limit=_PAGE,
                cursor=request.query_params.get("cursor") or None,
            )
            if wanted
            else _NONE
        )
    except BadCursor:
        return see_other(_address(asked))
    return respond(
        "integrations.html",
        **frame(request, who, "integrations"),
        found=found,
        asked=asked,
        ignored=ignored,
        filtered=any(asked[name] for name in _FILTERS),
        statuses=STATUSES,
        servers=list(here.services.servers),
        sorts=_SORTED,
        older=_address(asked | {"cursor": found.older}) if found.older else None,
        newer=_address(asked | {"cursor": found.newer}) if found.newer else None,
        now=await here.pool.fetchval("SELECT now()"),
    )


def _understood(query: Mapping[str, str], servers: list[str]) -> tuple[dict[str, str], list[str]]:
    """The filters, and a sentence for each invalid parameter."""
    asked = {name: query.get(name, "").strip()[: words.LONGEST] for name in (*_FILTERS, "sort")}
    ignored = [
        f"There is no filter {name[:40]!r}."
        for name in query
        if name not in (*_FILTERS, "sort", "cursor")
    ]

    def refuse(name: str, said: str) -> None:
        ignored.append(said)
        asked[name] = ""

    if asked["status"] not in ("", *STATUSES):
        refuse(
            "status", f"There is no status {asked['status']!r}; there are {', '.join(STATUSES)}."
        )
    if asked["server"] not in ("", *servers):
        refuse("server", f"There is no server {asked['server']!r}; there are {', '.join(servers)}.")
    if asked["sort"] not in ("", *SORTS):
        refuse("sort", f"There is no order {asked['sort']!r}; there are {', '.join(SORTS)}.")
    if asked["organization"]:
        try:
            asked["organization"] = str(UUID(asked["organization"]))
        except ValueError:
            said = f"An organization is a UUID, which {asked['organization']!r} is not."
            refuse("organization", said)
    asked["attention"] = "1" if asked["attention"] else ""
    return asked, ignored


def _wanted(asked: Mapping[str, str], who: Caller) -> Wanted | None:
    """What is listed; None when nothing can fit: another organization was requested."""
    organization = who.organization_id
    if asked["organization"]:
        organization = UUID(asked["organization"])
        if not visible(who, organization):
            return None
    return Wanted(
        asked["search"] or None,
        asked["status"] or None,
        organization,
        asked["server"] or None,
        bool(asked["attention"]),
        cast(Sort, asked["sort"] or "newest"),
    )


def _address(asked: Mapping[str, str | None]) -> str:
    given = {name: value for name, value in asked.items() if value}
    return _HERE + (f"?{urlencode(given)}" if given else "")
