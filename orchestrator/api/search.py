"""Finding over HTTP: lists of integrations, and one search over everything."""

from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query

from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import CurrentCaller, visible
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.reads import Reads
from evosaga.orchestrator.whatsapp.integrations.find import find
from evosaga.orchestrator.whatsapp.integrations.search import Sort, Wanted, list_integrations
from evosaga.orchestrator.whatsapp.integrations.words import LONGEST

router: Final = APIRouter(tags=["integrations"])

_SEARCHED: Final = (
    "the clinic's name (the beginnings of its words), a phone number, or the beginning of an id"
)


@router.get(
    "/integrations",
    summary="All integrations, newest first",
    operation_id="listIntegrations",
    responses=problems("invalid_data", "bad_cursor", *EVERYWHERE),
)
async def listing(
    who: CurrentCaller,
    reads: Reads,
    organization_id: UUID | None = None,
    search: Annotated[str | None, Query(max_length=LONGEST, description=_SEARCHED)] = None,
    status: Literal["pending", "connected", "disconnected", "deleting"] | None = None,
    server: Annotated[str | None, Query(max_length=120)] = None,
    attention: Annotated[bool, Query(description="only those that need attention")] = False,
    sort: Sort = "newest",
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str | None, Query(max_length=1200)] = None,
) -> schemas.IntegrationPage:
    """A key with an organization sees its own; without, all or those of `organization_id`."""
    if organization_id is not None and not visible(who, organization_id):
        return schemas.IntegrationPage(integrations=[], cursor=None)
    whose = organization_id or who.organization_id
    wanted = Wanted(search, status, whose, server, attention, sort)
    found = await list_integrations(reads.pool, wanted, limit=limit, cursor=cursor)
    return schemas.IntegrationPage(
        integrations=[schemas.integration_shape(view) for view in found.integrations],
        cursor=found.older,
        previous=found.newer,
        count=found.count,
        more=found.more,
    )


@router.get(
    "/search",
    summary="Find integrations and sagas",
    operation_id="search",
    responses=problems("invalid_data", *EVERYWHERE),
)
async def search(
    who: CurrentCaller,
    reads: Reads,
    q: Annotated[str, Query(min_length=1, max_length=LONGEST, description=_SEARCHED)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> schemas.SearchAnswer:
    """By a clinic's name, a phone number in any form, an organization, or a part of an id.

    Sagas are found by the same, also those that left no integration behind.
    """
    found = await find(reads.pool, q, who.organization_id, limit=limit)
    return schemas.SearchAnswer(
        integrations=[schemas.integration_shape(one) for one in found.integrations.integrations],
        count=found.integrations.count,
        more=found.integrations.more,
        sagas=[schemas.saga_shape(saga) for saga in found.sagas],
        organization_id=found.organization,
    )
