"""Routes that look at WhatsApp's servers now and repair: ``health --fix``, ``reconcile --fix``.

Unlike the routes of ``findings`` they ask Evolution, and may take as long as ``wait`` says.
"""

import asyncio
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Query
from pydantic import ConfigDict, Field

from evosaga.events.connection_errors import reason
from evosaga.events.database import Pool
from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import CurrentCaller, operator, visible
from evosaga.orchestrator.api.dependencies import Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.recovery import Wait
from evosaga.orchestrator.whatsapp.health import fix
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, HealthReport
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler, UnknownChoice
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep
from evosaga.orchestrator.whatsapp.reconciliation.visit import NotRemovable, Visit

router: Final = APIRouter(tags=["operations"])
_HIDDEN: Final = "a server could not be checked"
"""What an organization is told; which one and why is for operators."""
_logger = structlog.get_logger("evosaga.api")
_going_on: Final[dict[Pool, asyncio.Task[HealthReport]]] = {}
"""The check that is under way, by its database. Who asks meanwhile waits for the same: a client
that was told that it goes on asks again by itself, and no phone is to be connected twice at once.
"""


Check = Annotated[
    float,
    Query(ge=1, le=600, description="seconds to wait for the check, which goes on after that"),
]


class CheckedShape(schemas.Shape):
    """How an integration is connected right now."""

    instance: str = Field(examples=[schemas.INSTANCE])
    name: str | None = Field(examples=["Clínica Sol"])
    organization: UUID
    id: UUID
    row: str = Field(description="what its row says")
    state: str
    since: str | None
    cure: str
    well: bool


class CheckResult(schemas.Shape):
    integrations: list[CheckedShape]
    summary: dict[str, Any]


class FoundDrift(schemas.Shape):
    """A difference between Evolution, Postgres and Redis."""

    model_config = ConfigDict(extra="allow")

    what: str = Field(examples=["orphan"])
    where: str = Field(examples=[schemas.INSTANCE])
    organization_id: UUID | None
    policy: str
    cause: str
    repair: str


class RequestedRepair(schemas.Shape):
    what: str
    where: str
    saga_id: UUID
    status: str
    message: str | None


class RepairResult(schemas.Shape):
    """``drifts`` are left of those ``before``. ``stopped``: why nothing was removed."""

    drifts: list[FoundDrift]
    before: list[FoundDrift]
    repairs: list[RequestedRepair]
    not_looked_at: dict[str, str] = Field(description="Evolution servers, and why")
    strangers: list[str] = Field(description="instances of unknown owners, left alone")
    busy: int = Field(description="instances that sagas are at work for, not compared")
    stopped: str | None


@router.post(
    "/health/fix",
    summary="Check every integration now, and connect what can be",
    operation_id="fixHealth",
    responses=problems("forbidden", "unavailable", *EVERYWHERE),
    dependencies=[Depends(operator)],
)
async def fix_health(here: Context, wait: Check = 120.0) -> CheckResult:
    """Rows follow what was seen, phones that are down are connected again, and all are looked at
    once more. Takes up to 20 s longer than a check; what is not over after `wait` goes on.
    """
    told = here.settings.alert_url is not None
    doctor = HealthMonitor(here.pool, here.services, here.settings.alert_after, told)
    try:
        done = await _within(_check_of(doctor), wait)
    except ObservationFailed as why:
        raise Problem("unavailable", f"nothing was changed: {why}") from None
    except fix.NotSeenAgain as why:
        raise Problem("unavailable", str(why)) from None
    return CheckResult.model_validate(await fix.document(doctor, done))


def _check_of(doctor: HealthMonitor) -> asyncio.Task[HealthReport]:
    """The one that is under way, else a new one."""
    if (task := _going_on.get(doctor.pool)) is None:
        task = _going_on[doctor.pool] = asyncio.create_task(fix.fix(doctor))
        task.add_done_callback(partial(_ended, doctor.pool))
    return task


async def _within(task: asyncio.Task[HealthReport], wait: float) -> HealthReport:
    """Its result. One that is not over goes on, since half a check would help nobody."""
    over, _ = await asyncio.wait({task}, timeout=wait)
    if over:
        return task.result()
    said = f"the check was not over after {wait:g} s, and goes on: GET /health has what is known"
    raise Problem("unavailable", said)


def _ended(pool: Pool, task: asyncio.Task[HealthReport]) -> None:
    del _going_on[pool]
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.warning("health_check_stopped", reason=reason(error))


@router.post(
    "/drifts/repair",
    summary="Compare the stores now, and repair what may be repaired",
    operation_id="repairDrifts",
    responses=problems("forbidden", "invalid_data", "unavailable", *EVERYWHERE),
)
async def repair_drifts(
    who: CurrentCaller,
    here: Context,
    organization_id: UUID | None = None,
    keep: Annotated[
        str | None,
        Query(max_length=100, description="connected, none, or an instance's name"),
    ] = None,
    remove: Annotated[list[str] | None, Query(max_length=50)] = None,
    wait: Wait = 120.0,
) -> RepairResult:
    """Looks twice and repairs what is marked `auto`; with an organization also what is marked
    `ask`. A key with an organization repairs its own. `remove` names instances that no row names.
    """
    if organization_id is not None and not visible(who, organization_id):
        raise Problem("forbidden", "this key may repair its own organization only")
    whose = organization_id or who.organization_id
    if keep and whose is None:
        raise Problem("invalid_data", "keep decides for one organization: give organization_id")
    chosen = Keep(whose, keep or "connected") if whose else None
    keeper = Reconciler(here.pool, here.services, here.gate, here.settings.older_names, quiet=0.0)
    try:
        visited = await Visit(keeper, chosen, remove or (), wait).fix()
    except (UnknownChoice, NotRemovable) as wrong:
        raise Problem("invalid_data", str(wrong)) from None
    except ObservationFailed as why:
        said = str(why) if who.organization_id is None else _HIDDEN
        raise Problem("unavailable", f"nothing was changed: {said}") from None
    told: dict[str, Any] = {"not_looked_at": {}} | visited.document()
    if who.organization_id is not None and told["not_looked_at"]:
        told["not_looked_at"] = {"server": _HIDDEN}
    return RepairResult.model_validate(told | {"stopped": visited.stopped})
