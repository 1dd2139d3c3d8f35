"""What the page of maintenance can do: compare now, reconnect phones, repair an organization.

Comparing and reconnecting are the background jobs' work, so they are only made due: one worker
does them within seconds, under its lease. A repair needs a person's decision for one organization,
so it is looked at here, shown, and then asked for.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.auth import Caller, visible
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages.forms import (
    PageProblem,
    Reader,
    Submitted,
    absent,
    frame,
    page_router,
    parts,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.whatsapp.integrations.names import names_of_instances
from evosaga.orchestrator.whatsapp.reconciliation import confirmations
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import (
    EVERYTHING,
    Found,
    Reconciler,
    allowed,
    find,
    repair,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import Policy

router: Final = page_router()

_HERE: Final = f"{ROOT}/upkeep"
_PATIENCE: Final = 20.0
"""Seconds for a look at an organization."""


@router.post(f"{_HERE}/compare")
async def compare(request: Request, who: Reader, submitted: Submitted) -> Response:
    """Make the comparison of the stores due now."""
    _for_operators(who)
    here = parts(request)
    _unless_off(here.settings.reconcile_every, "EVOSAGA_RECONCILE_EVERY")
    await here.pool.execute(_DUE, "reconcile")
    return see_other(f"{_HERE}?asked=compare")


@router.get(f"{_HERE}/reconnect")
async def reconnect_plan(request: Request, who: Reader) -> Response:
    """Which phones would be reconnected; nothing is changed."""
    rows = await parts(request).pool.fetch(
        _DOWN, request.query_params.getlist("instance"), who.organization_id
    )
    return respond("reconnect.html", **frame(request, who, "upkeep"), rows=rows)


@router.post(f"{_HERE}/reconnect")
async def reconnect(request: Request, who: Reader, submitted: Submitted) -> Response:
    """Make their next try, and the health check that does it, due now."""
    here = parts(request)
    _unless_off(here.settings.health_every, "EVOSAGA_HEALTH_EVERY")
    rows = await here.pool.fetch(_DOWN, submitted["instances"].splitlines(), who.organization_id)
    if not rows:
        said = "None of them is down any more: reload the page of maintenance."
        raise PageProblem(409, "Nothing to reconnect", said)
    await here.pool.execute(_TRY_NOW, [row["id"] for row in rows])
    await here.pool.execute(_DUE, "health")
    return see_other(f"{_HERE}?asked=reconnect")


@dataclass(frozen=True, slots=True)
class Repairable:
    """A drift as a look just saw it, with the clinic's name."""

    drift: Drift
    name: str | None
    mended: bool
    """It is repaired when the form is sent."""


@router.get(f"{_HERE}/repair")
async def repair_plan(request: Request, who: Reader) -> Response:
    """What is wrong with an organization's integration right now, and what a repair would do."""
    here = parts(request)
    organization = _organization(who, request.query_params.get("organization", ""))
    drifts = (await _look(here, who, organization)).drifts
    names = await names_of_instances(here.pool, [one.where for one in drifts], organization)
    now = _first(drifts)
    return respond(
        "repair.html",
        **frame(request, who, "upkeep"),
        drifts=[Repairable(one, names.get(one.where), one in now) for one in drifts],
        organization=organization,
    )


@router.post(f"{_HERE}/repair")
async def repair_now(request: Request, who: Reader, submitted: Submitted) -> Response:
    """Look again, and ask for the repairs of what the form named and what is still so."""
    here = parts(request)
    organization = _organization(who, submitted["organization"])
    named = {line.strip() for line in submitted["drifts"].splitlines()}
    found = await _look(here, who, organization)
    chosen = [drift for drift in _first(found.drifts) if _key(drift) in named]
    seen = await confirmations.note(
        *(here.pool, found.drifts),
        kinds=EVERYTHING,
        blind=found.blind,
        organization_id=organization,
        grace=0.0,
    )
    asked = [await repair(_keeper(here), one) for one in seen if one.drift in chosen]
    sagas = [one.saga_id for one in asked if one is not None]
    if not sagas:
        said = "What was shown is not so any more, or the repair was refused. Look again."
        raise PageProblem(409, "Nothing was repaired", said)
    if len(sagas) == 1:
        return see_other(f"{ROOT}/sagas/{sagas[0]}")
    return see_other(f"{ROOT}/sagas?organization={organization}")


async def _look(here: AppContext, who: Caller, organization: UUID) -> Found:
    """Compare the stores for one organization. Raises ``PageProblem`` when that is not possible."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await find(_keeper(here), keep=Keep(organization, "connected"))
    except (ObservationFailed, TimeoutError) as reason:
        why = str(reason) or "the look took too long"
        if who.organization_id is not None and isinstance(reason, ObservationFailed):
            why = "a server could not be checked"  # which one and why is for operators
        said = f"Nothing was changed: {why}."
        raise PageProblem(503, "Can't compare now", said) from None


def _first(drifts: Sequence[Drift]) -> list[Drift]:
    """What is repaired now: what a row names is changed before what it no longer names goes."""
    mendable = [drift for drift in drifts if allowed(drift, _POLICIES)]
    return [drift for drift in mendable if not drift.waits] or mendable


def _key(drift: Drift) -> str:
    """What the form calls it."""
    return f"{drift.what} {drift.where}"


def _keeper(here: AppContext) -> Reconciler:
    return Reconciler(here.pool, here.services, here.gate, here.settings.older_names, quiet=0.0)


def _organization(who: Caller, given: str) -> UUID:
    """The organization, if the caller may act for it. Raises ``PageProblem``."""
    try:
        organization = UUID(given)
    except ValueError:
        raise absent("organization") from None
    if not visible(who, organization):
        raise absent("organization")
    return organization


def _for_operators(who: Caller) -> None:
    if who.organization_id is not None:
        raise absent("page")


def _unless_off(every: float, variable: str) -> None:
    if every <= 0:
        raise PageProblem(409, "This job is off", f"Set {variable} to more than 0 to have it done.")


_POLICIES: Final[tuple[Policy, ...]] = ("auto", "ask")
# Its worker may be gone, or none may ever have run here.
_DUE: Final = """
WITH parts AS (
    UPDATE evosaga.chores SET next_at = least(next_at, now()) WHERE starts_with(name, $1 || '/')
)
INSERT INTO evosaga.chores AS known (name, next_at) VALUES ($1, now())
ON CONFLICT (name) DO UPDATE SET next_at = least(known.next_at, now())
"""
_DOWN: Final = """
SELECT row.id, row.config ->> 'instance_name' AS instance_name, row.config ->> 'name' AS name
FROM healthcare.integrations AS row
JOIN evosaga.connections AS seen ON seen.integration_id = row.id
WHERE row.config ->> 'instance_name' = ANY($1) AND seen.state = 'down' AND row.enabled
  AND ($2::uuid IS NULL OR row.organization_id = $2)
ORDER BY 3
"""
_TRY_NOW: Final = """
UPDATE evosaga.connections SET next_reconnect_at = now() WHERE integration_id = ANY($1)
"""
