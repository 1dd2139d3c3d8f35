"""Routes for a log that went back: what it has forgotten, and healing it. For operators."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from evosaga.events import log_loss
from evosaga.orchestrator.api import recovery_run, schemas
from evosaga.orchestrator.api.auth import operator
from evosaga.orchestrator.api.dependencies import AppContext, Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.domain import Domains
from evosaga.orchestrator.engine.resources import ServicesBySaga
from evosaga.orchestrator.whatsapp.domain import WHATSAPP
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed

router: Final = APIRouter(tags=["operations"])
_FOR_OPERATORS: Final[dict[str, Any]] = {
    "responses": problems("forbidden", "unavailable", *EVERYWHERE),
    "dependencies": [Depends(operator)],
}
Wait = Annotated[
    float, Query(ge=0, le=600, description="seconds to wait for workers; repairs go on after that")
]


class LossShape(schemas.Shape):
    """What proves that the log went back."""

    noticed_at: datetime | None
    told_up_to: int | None
    newest: int
    event: str | None
    said: str


class ForgottenCommandShape(schemas.Shape):
    message_id: str
    id: str
    type: str
    saga_id: str


class ForgottenSagaShape(schemas.Shape):
    """``what``: `goes_on`, `taken_again`, `over`, or `lost`: it must be asked for again."""

    saga_id: UUID
    saga: str | None
    known: bool
    events: int
    last: str
    at: datetime
    organization_id: UUID | None
    instance_name: str | None
    command: str | None
    command_id: str | None
    what: str


class LeftoverShape(schemas.Shape):
    """Something outside that no store of ours names. ``does`` null: a person has to decide."""

    what: str
    where: str
    organization_id: UUID | None
    cause: str
    repair: str
    does: str | None


class RecoveryPlan(schemas.Shape):
    went_back: LossShape | None = Field(description="null: the log has what was published")
    epoch: int
    commands: list[ForgottenCommandShape]
    sagas: list[ForgottenSagaShape]
    instances: list[LeftoverShape]


class RepairShape(schemas.Shape):
    what: str
    where: str
    does: str | None
    status: str
    saga_id: UUID | None
    message: str | None


class RecoveryResult(RecoveryPlan):
    begun: int | None = Field(
        description="the epoch in which events are told; null: no worker took the commands, and "
        "the stop is not lifted"
    )
    repairs: list[RepairShape]
    left: list[LeftoverShape]
    lost_sagas: list[UUID]


@router.get(
    "/recover",
    summary="What Postgres has forgotten after a restore or a failover",
    operation_id="getRecovery",
    **_FOR_OPERATORS,
)
async def plan(here: Context) -> RecoveryPlan:
    """Commands that can be taken again, lost sagas, instances without a row; changes nothing."""
    known = await recovery_run.compared(here.pool, here.redis)
    seen = await _seen(here, known)
    return RecoveryPlan.model_validate(seen.document())


@router.post(
    "/recover",
    summary="Heal what was forgotten, and go on in a new epoch",
    operation_id="recover",
    **_FOR_OPERATORS,
)
async def heal(here: Context, wait: Wait = 120.0) -> RecoveryResult:
    """Takes forgotten commands again, mends what is left outside, and lets events be told again.

    Where nothing was forgotten nothing is done. Safe to repeat.
    """
    known = await log_loss.notice(here.pool, here.redis)
    seen = await _seen(here, known)
    done = recovery_run.Healed(known.epoch, (), ())
    if seen.wrong:
        try:
            done = await recovery_run.Recovery(_place(here), wait).heal(seen)
        except (recovery_run.CantLook, ObservationFailed) as reason:
            raise Problem("unavailable", f"not everything was done: {reason}") from None
    return RecoveryResult.model_validate(seen.document() | done.document())


async def _seen(here: AppContext, known: log_loss.Comparison) -> recovery_run.Plan:
    try:
        return await recovery_run.plan(_place(here), known)
    except (recovery_run.CantLook, ObservationFailed) as reason:
        raise Problem("unavailable", f"nothing was changed: {reason}") from None


def _place(here: AppContext) -> recovery_run.Place:
    services = here.gate.services
    of = services.of if isinstance(services, ServicesBySaga) else lambda _: here.services
    domains = here.domains or Domains.of(WHATSAPP)
    return recovery_run.Place(here.settings, here.pool, here.redis, domains, of, here.gate)
