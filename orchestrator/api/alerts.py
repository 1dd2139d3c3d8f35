"""Alerts over HTTP: what is wrong, who is told, and a test of that."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from evosaga.orchestrator.api.auth import operator
from evosaga.orchestrator.api.dependencies import Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.config.receivers import receivers_of
from evosaga.orchestrator.maintenance.alerts.dispatcher import Posting
from evosaga.orchestrator.maintenance.alerts.testing import send_test
from evosaga.orchestrator.maintenance.alerts.view import MOST, listing, receivers

router: Final = APIRouter(tags=["alerts"], dependencies=[Depends(operator)])


class Alert(BaseModel):
    id: int
    key: str
    code: str
    reason: str | None
    severity: Literal["warning", "critical"]
    status: Literal["pending", "firing", "resolved"]
    message: str
    cure: str
    count: int
    opened_at: datetime
    announced_at: datetime | None
    resolved_at: datetime | None
    runbook: str
    details: dict[str, Any]


class ReceiverState(BaseModel):
    name: str
    format: Literal["json", "slack", "pagerduty"]
    alerts: bool
    events: list[str]
    waiting: int
    given_up: int
    failing_since: datetime | None
    delivered_at: datetime | None
    error: str | None


class Alerts(BaseModel):
    alerts: list[Alert]
    receivers: list[ReceiverState]


class Tested(BaseModel):
    receiver: str
    delivered: bool
    error: str | None


class TestResult(BaseModel):
    receivers: list[Tested]


@router.get(
    "/alerts",
    summary="What is wrong, the gravest first, and who is told",
    responses=problems("forbidden", "invalid_data", *EVERYWHERE),
)
async def alerts(
    here: Context,
    resolved: bool = False,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
) -> Alerts:
    """The open alerts, and with `resolved=true` those that are over; kept for 30 days."""
    found = await listing(here.pool, resolved=resolved, limit=limit)
    known = await receivers(here.pool, receivers_of(here.settings))
    runbook = here.settings.runbook_url
    return Alerts.model_validate(
        {
            "alerts": [one.told(runbook) for one in found],
            "receivers": [one.told() for one in known],
        }
    )


@router.post(
    "/alerts/test",
    summary="Send a test message to every receiver, or to those that are named",
    responses=problems("forbidden", "not_found", *EVERYWHERE),
)
async def test(
    here: Context,
    receiver: Annotated[list[str] | None, Query(description="only these", max_length=50)] = None,  # noqa: PT028
) -> TestResult:
    """Sent at once, from here; the answer says what each of them made of it."""
    posting = Posting.of(here.settings)
    if not posting.receivers:
        raise Problem("not_found", "no receiver is configured: set EVOSAGA_ALERTS_URL")
    if unknown := [name for name in receiver or () if name not in posting.receivers]:
        known = ", ".join(posting.receivers)
        said = f"there is no receiver {unknown[0][:80]!r} (there is: {known})"
        raise Problem("not_found", said)
    names = list(dict.fromkeys(receiver or ())) or list(posting.receivers)
    answers = await asyncio.gather(*(send_test(posting, name) for name in names))
    told = [
        Tested(receiver=name, delivered=answer.ok, error=answer.error or None)
        for name, answer in zip(names, answers, strict=True)
    ]
    return TestResult(receivers=told)
