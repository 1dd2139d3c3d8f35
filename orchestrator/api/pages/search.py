"""One search over everything, from the header of every page."""

from collections.abc import Sequence
from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts, see_other
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.api.reads import reads_of
from evosaga.orchestrator.whatsapp.integrations import words
from evosaga.orchestrator.whatsapp.integrations.find import find
from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView
from evosaga.orchestrator.whatsapp.integrations.search import Wanted, list_integrations

router: Final = page_router()
_ILL: Final = 20
"""Integrations among those found that need attention, shown before the others."""


@router.get(f"{ROOT}/search")
async def search(request: Request, who: Reader) -> Response:
    """What is called like that; the page of a saga or its command whose whole id was typed."""
    here = parts(request)
    text = words.tidy(request.query_params.get("q", ""))
    reads = await reads_of(request)
    found = await find(reads, text, who.organization_id, whatsapp=here.whatsapp)
    ill: Sequence[IntegrationView] = []
    if here.whatsapp and found.integrations.integrations:
        wanted = Wanted(search=text, organization_id=who.organization_id, attention=True)
        ill = (await list_integrations(reads, wanted, limit=_ILL)).integrations
    if found.exact and text.lower() in (str(found.exact.saga_id), found.exact.command_id.lower()):
        return see_other(f"{ROOT}/sagas/{found.exact.saga_id}")
    return respond(
        "search.html",
        **frame(request, who, "search") | {"searched": text},
        found=found,
        ill=ill,
        clinics=await here.names_of([saga.saga_id for saga in found.sagas]),
        now=await here.pool.fetchval("SELECT now()"),
    )
