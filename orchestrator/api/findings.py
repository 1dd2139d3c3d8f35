"""Routes for what the jobs of WhatsApp found last: connections of phones, and drifts.

None of them asks Evolution.
"""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import CurrentCaller, visible
from evosaga.orchestrator.api.dependencies import Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.reads import Reads
from evosaga.orchestrator.queries import upkeep
from evosaga.orchestrator.whatsapp.attention import reason_of
from evosaga.orchestrator.whatsapp.health.listing import findings, last_check
from evosaga.orchestrator.whatsapp.reconciliation.listing import known_drifts

router: Final = APIRouter(tags=["operations"])
_Limit = Annotated[int, Query(ge=1, le=1000)]


class ConnectionShape(schemas.Shape):
    """How an integration is connected."""

    instance_name: str = Field(examples=[schemas.INSTANCE])
    organization_id: UUID | None
    integration_id: UUID
    name: str | None = Field(examples=["Clínica Sol"])
    status: str = Field(description="what its row says", examples=["disconnected"])
    state: str = Field(description="what the last check saw", examples=["needs_qr"])
    well: bool
    cure: str = Field(description="what can be done; empty where nothing has to be")
    since: datetime | None
    checked_at: datetime | None = Field(description="when Evolution was last asked about it")
    reason: int | None = Field(description="WhatsApp's code for the lost connection")
    reconnects: int
    next_reconnect_at: datetime | None
    alerted_at: datetime | None


class HealthPage(schemas.Shape):
    """A page, by the integration's id. ``checked_at``: when the last check of all was done."""

    connections: list[ConnectionShape]
    checked_at: datetime | None
    cursor: UUID | None


class DriftShape(schemas.Shape):
    """A difference between Evolution, Postgres and Redis."""

    what: str = Field(examples=["orphan"])
    where: str = Field(description="the instance", examples=[schemas.INSTANCE])
    organization_id: UUID | None
    policy: str = Field(
        description="auto: repaired by itself; ask: repaired once a person decides; never: by hand",
        examples=["auto"],
    )
    cause: str
    repair: str
    servers: list[str]
    first_seen: datetime
    last_seen: datetime
    looks: int = Field(description="comparisons that saw it, since its repair if there was one")
    repairs: int
    repaired_at: datetime | None


class DriftList(schemas.Shape):
    """Those known longest first; ``more`` are left out."""

    drifts: list[DriftShape]
    more: int
    compared_at: datetime | None = Field(description="when the stores were last compared")
    unfinished: str | None = Field(description="why that comparison is incomplete; null: it is not")


@router.get(
    "/health",
    summary="How the integrations are connected",
    operation_id="getHealth",
    responses=problems(*EVERYWHERE),
)
async def health(
    who: CurrentCaller,
    here: Context,
    reads: Reads,
    organization_id: UUID | None = None,
    well: Annotated[
        bool | None, Query(description="`false`: only those that need something")
    ] = None,
    limit: _Limit = 100,
    cursor: Annotated[UUID | None, Query(description="from the page before")] = None,
) -> HealthPage:
    """As the last check found them, each with what can be done about it."""
    if organization_id is not None and not visible(who, organization_id):
        return HealthPage(connections=[], checked_at=None, cursor=None)
    page, after = await findings(
        reads.pool, organization_id or who.organization_id, well=well, limit=limit, after=cursor
    )
    return HealthPage(
        connections=[ConnectionShape(**asdict(one), well=one.well, cure=one.cure) for one in page],
        checked_at=await last_check(here.pool),
        cursor=after,
    )


@router.get(
    "/drifts",
    summary="What the last comparison of the stores found",
    operation_id="listDrifts",
    responses=problems(*EVERYWHERE),
)
async def drifts(
    who: CurrentCaller, here: Context, organization_id: UUID | None = None, limit: _Limit = 100
) -> DriftList:
    """Differences between Evolution, Postgres and Redis, and what repairs each."""
    if organization_id is not None and not visible(who, organization_id):
        return DriftList(drifts=[], more=0, compared_at=None, unfinished=None)
    jobs = await upkeep.jobs(here.pool)
    compared = next((job for job in jobs if job.name == "reconcile"), None)
    wanted = organization_id or who.organization_id
    known, more = await known_drifts(here.pool, jobs, wanted, limit=limit)
    reason = reason_of(compared.result) if compared else None
    if reason is not None and who.organization_id is not None:
        reason = "a server could not be checked"  # which one and why is for operators
    return DriftList(
        drifts=[DriftShape(**asdict(one)) for one in known],
        more=more,
        compared_at=compared.last_run if compared else None,
        unfinished=reason,
    )
