"""Maintenance: drift between the stores, disconnected phones, and the scheduled jobs' results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from evosaga.events.database import Queryable
from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts
from evosaga.orchestrator.api.pages.rendering import ROOT, ago, respond
from evosaga.orchestrator.config.receivers import PHONES, receivers_of
from evosaga.orchestrator.queries.sagas import living_workers
from evosaga.orchestrator.queries.upkeep import JobView, jobs
from evosaga.orchestrator.whatsapp.attention import reason_of
from evosaga.orchestrator.whatsapp.health.listing import findings
from evosaga.orchestrator.whatsapp.integrations.names import names_of_instances
from evosaga.orchestrator.whatsapp.reconciliation.listing import known_drifts

router: Final = page_router()

_MOST: Final = 100
_ASKED: Final = {
    "compare": "The stores are being compared. Reload this page in a few seconds for the result.",
    "reconnect": "Reconnecting. Reload this page in a few seconds to see the result.",
}
"""What a form of this page asked for."""


@dataclass(frozen=True, slots=True)
class Drifted:
    """A difference between the stores, and what will be done about it."""

    what: str
    instance_name: str
    organization_id: UUID | None
    first_seen: datetime
    looks: int
    """Observations since the first one, or since the last repair was requested."""
    repairs: int
    repaired_at: datetime | None
    cause: str
    repair: str
    by_itself: bool
    name: str | None = None
    """The clinic's."""


@dataclass(frozen=True, slots=True)
class Chored:
    """A scheduled job: its last run, the result, and its next run."""

    name: str
    last_run: datetime | None
    next_at: datetime
    failed: str | None
    came: Sequence[tuple[str, str]]


@router.get(f"{ROOT}/upkeep")
async def upkeep(request: Request, who: Reader) -> Response:
    """What is known; the page itself compares nothing, which is the jobs' task."""
    pool = parts(request).pool
    known = await jobs(pool)
    alive = await living_workers(pool)
    unwell, _ = await findings(pool, who.organization_id, well=False, limit=_MOST)
    drifted = await _drifted(pool, who.organization_id, known)
    last = next((job for job in known if job.name == "reconcile"), None)
    compared = last.last_run if last else None
    reason = reason_of(last.result) if last else None
    now = await pool.fetchval("SELECT now()")
    return respond(
        "upkeep.html",
        **frame(request, who, "upkeep"),
        headline=headline(drifted, len(unwell), compared, reason is not None, now),
        drifted=drifted,
        compared=compared,
        # Why a server cannot be checked is for operators only.
        reason=reason if who.organization_id is None or reason is None else "",
        told=any(
            one.alerts or name == PHONES
            for name, one in receivers_of(parts(request).settings).items()
        ),
        unwell=sorted(unwell, key=lambda one: one.since or now),  # those away longest first
        chores=[
            Chored(job.name, job.last_run, job.next_at, reason_of(job.result), _came(job.result))
            for job in known
            if who.organization_id is None
        ],
        asked=_ASKED.get(request.query_params.get("asked", ""), ""),
        alive=alive,
        now=now,
    )


def headline(
    drifted: Sequence[Drifted], away: int, compared: datetime | None, blind: bool, now: datetime
) -> str:
    """The results of the last checks. The page makes none, so it says when they were. Pure.

    ``blind``: the last comparison could not be finished.
    """
    seen = sum(one.looks > 0 for one in drifted)
    asked = len(drifted) - seen
    if seen:
        them = "thing is not as it" if seen == 1 else "things are not as they"
        said = f"{seen} {them} should be"
    elif asked:
        repairs = "repair was" if asked == 1 else "repairs were"
        said = f"{asked} {repairs} requested and not checked since"
    elif compared is None:
        said = "The stores have not been compared yet"
    elif blind:
        said = f"The stores could not be compared, {ago(compared, now)}"
    else:
        said = f"The stores agreed when they were compared, {ago(compared, now)}"
    if not away:
        return said
    phones = "phone is" if away == 1 else "phones are"
    many = f"{away}{'+' if away == _MOST else ''}"
    return f"{said}; {many} {phones} not connected"


async def _drifted(
    pool: Queryable, organization_id: UUID | None, known: list[JobView]
) -> list[Drifted]:
    drifts, _ = await known_drifts(pool, known, organization_id, limit=_MOST)
    names = await names_of_instances(pool, [one.where for one in drifts], organization_id)
    return [
        Drifted(
            what=one.what,
            instance_name=one.where,
            organization_id=one.organization_id,
            first_seen=one.first_seen,
            looks=one.looks,
            repairs=one.repairs,
            repaired_at=one.repaired_at,
            cause=one.cause,
            repair=one.repair,
            by_itself=one.policy == "auto",
            name=names.get(one.where),
        )
        for one in drifts
    ]


_LEFT_OUT: Final = frozenset(
    {"shown", "seconds", "failed", "aborted", "not_looked_at", "unfinished_in_a_row"}
)


def _came(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a result that are worth showing."""
    plain = ((k.replace("_", " "), v) for k, v in result.items() if k not in _LEFT_OUT)
    return [(name, str(value)) for name, value in plain if value and not isinstance(value, dict)]
