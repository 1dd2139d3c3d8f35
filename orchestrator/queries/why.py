"""Why a saga is where it is, said as somebody would who has looked everything up.

``why`` is pure: from a saga's definition, history and status row, and from what is known of the
workers, to what it waits for, since when, what happens next and when, and what a person can do.
``why_of`` looks all that up. Both answer for every saga, one that no release can read included.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from evosaga.events import turns
from evosaga.events.clock import LIVING
from evosaga.events.database import Pool
from evosaga.events.model import CompensationSucceeded, Recorded
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.engine.decider import can_compensate
from evosaga.orchestrator.engine.quarantine import STUMBLED
from evosaga.orchestrator.engine.repeated_holds import with_hold
from evosaga.orchestrator.engine.state import IllegalTransition, State, replay
from evosaga.orchestrator.queries import sagas
from evosaga.orchestrator.queries.diagnosis import Diagnosis as Diagnosis
from evosaga.orchestrator.queries.diagnosis import SagaFacts as SagaFacts
from evosaga.orchestrator.queries.diagnosis import Workers as Workers
from evosaga.orchestrator.queries.diagnosis import ago, who_could
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.queries.waiting import waiting_for
from evosaga.sagas.explainer import NOTHING, PLAIN, Explainer
from evosaga.sagas.registry import SagaRegistry


async def why_of(
    pool: Pool, registry: SagaRegistry, view: SagaView, explain: Explainer = PLAIN
) -> Diagnosis:
    """Why this saga is where it is right now; ``explain``: what its domain can add."""
    try:
        history: list[Recorded] | None = await sagas.history(pool, view.saga_id)
    except sagas.Unreadable:
        history = None
    first = await turns.ahead_of(pool, view.saga_id) if view.code == turns.WAITING else None
    ahead = await sagas.find_saga(pool, str(first)) if first else None
    now: datetime = await pool.fetchval("SELECT now()")
    saga = registry.find(view.saga, view.version)
    done = view.status == "completed"
    after = await explain.completed(pool, view.saga, view.saga_id, now) if done else NOTHING
    workers = await living(pool)
    beside = 0
    if view.owner is None and view.organization_id is not None:
        beside = await pool.fetchval(_BESIDE, view.organization_id)
    return why(SagaFacts(view, saga, history, workers, now, ahead, explain, after, beside))


async def living(pool: Pool) -> Workers:
    """The workers as the database knows them."""
    rows = await pool.fetch(
        f"SELECT worker_id, {LIVING} AS alive, knows FROM evosaga.workers"  # noqa: S608  # constants
    )
    said = {row["worker_id"]: row["knows"] for row in rows if row["knows"]}
    return Workers(
        frozenset(row["worker_id"] for row in rows if row["alive"]),
        frozenset(row["worker_id"] for row in rows if not row["alive"]),
        {worker: frozenset(map(_definition, known)) for worker, known in said.items()},
    )


def _definition(text: str) -> tuple[str, int]:
    name, _, version = text.rpartition("/")
    return name, int(version)


# --- pure from here on ------------------------------------------------------------------------


def why(case: SagaFacts) -> Diagnosis:
    """Why the saga is where it is."""
    view = case.view
    match view.status:
        case "completed":
            return _completed(case)
        case "rejected":
            return _rejected(view)
        case "compensated":
            return _compensated(case)
    if case.history is None:
        return _unreadable(case, "of a type or shape that this release does not know")
    try:
        case = replace(case, history=with_hold(view, case.history))
        assert case.history is not None
        state = replay(recorded.event for recorded in case.history)
        if view.status == "failed":
            return _parked(case, state)
        told = waiting_for(case, case.history, state)
        return _stumbled(view, told) if view.code == STUMBLED else told
    except (IllegalTransition, LookupError, AssertionError):
        return _unreadable(case, "that this release's definition could not have written")


def _completed(case: SagaFacts) -> Diagnosis:
    said = f"It is completed, {ago(case.view.updated_at, case)} ago: every step is done."
    return Diagnosis(said, case.after.details, cure=case.after.cure)


def _rejected(view: SagaView) -> Diagnosis:
    cure = f"see what is in the way: evosaga status {view.existing_instance}"
    return Diagnosis(
        f"It was refused before anything was touched: {view.message}.",
        ("Nothing waits and nothing is left behind.",),
        cure=cure if view.existing_instance else None,
    )


def _compensated(case: SagaFacts) -> Diagnosis:
    undone = [
        r.event.step for r in case.history or () if isinstance(r.event, CompensationSucceeded)
    ]
    said = f"Undone, in this order: {', '.join(undone)}." if undone else "Nothing had to be undone."
    return Diagnosis(
        f"It was rolled back: {case.view.message}.",
        (said, "Nothing is left behind, and nothing waits."),
        cure=f"to try again, as a saga of its own: evosaga replay {case.view.saga_id}",
    )


def _stumbled(view: SagaView, told: Diagnosis) -> Diagnosis:
    return replace(
        told,
        headline=f"It is set aside: {view.message}.",
        details=(
            "That is a fault of ours, not of the saga. Nothing of it is lost, other sagas go on, "
            "and it is tried again by itself after growing pauses of up to a minute.",
            f"Where it is: {told.headline[0].lower()}{told.headline[1:]}",
            *told.details,
        ),
        cure=f"report it, with the worker's log: evosaga events {view.saga_id} --json",
    )


def _unreadable(case: SagaFacts, what: str) -> Diagnosis:
    view = case.view
    return Diagnosis(
        f"It is set aside: its history has an event {what}.",
        (
            f"It is {view.status} and unchanged for {ago(view.updated_at, case)}; nothing of "
            "it is skipped, and other sagas go on.",
            *who_could(case),
        ),
        cure="run a worker of the newer release that wrote it, or report it: "
        f"evosaga events {view.saga_id} --json",
    )


def _parked(case: SagaFacts, state: State) -> Diagnosis:
    view, parked = case.view, state.parked
    assert parked is not None
    back = parked.direction == "compensation"
    tried = "could not be undone" if back else "could not be finished"
    details = [
        f"It has been parked for {ago(view.updated_at, case)}; nothing happens until a person "
        "decides.",
        "It keeps its business key meanwhile: no other saga of this integration can start.",
    ]
    if back:
        details.append(f"Still to undo: {', '.join(state.to_compensate)}.")
    elif case.saga is not None and not can_compensate(case.saga, state):
        details.append("It is past its point of no return, so it can only be finished.")
    undo = f", or try only to undo it: evosaga cancel {view.saga_id}" if back else ""
    return Diagnosis(
        f"Parked: step {parked.step} {tried}: {parked.message}.",
        tuple(details),
        cure=f"mend the cause; see what a replay would do: evosaga replay {view.saga_id} --plan; "
        f"then: evosaga replay {view.saga_id}{undo}",
    )


_BESIDE: Final = f"""
SELECT count(*) FROM (SELECT FROM evosaga.sagas WHERE organization_id = $1 AND {ACTIVE_STATUSES}
                      AND owner IS NOT NULL LIMIT 1000) AS driven
"""  # noqa: S608  # constants only
