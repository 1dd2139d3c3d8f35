"""A finished saga as an HTTP answer, made from its recorded history alone."""

from collections.abc import Iterable
from typing import Any

from evosaga.events.model import (
    CompensationBegan,
    CompensationSucceeded,
    Recorded,
    SagaCompensated,
    SagaFailed,
    StepSucceeded,
)
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.schemas import Deleted
from evosaga.orchestrator.queries.sagas import SagaView


def results(history: Iterable[Recorded]) -> dict[str, dict[str, Any]]:
    """The result of every step that succeeded."""
    return {r.event.step: r.event.result for r in history if isinstance(r.event, StepSucceeded)}


def deleted(history: Iterable[Recorded]) -> Deleted:
    """What was verified as deleted. An instance of another owner was left in place."""
    done = results(history)
    foreign = done.get("evolution", {}).get("note") == "not_ours"
    return Deleted(
        success=True,
        evolution_deleted="evolution" in done and not foreign,
        database_deleted="postgres" in done,
        cache_invalidated="cache" in done,
        workers_notified="notify" in done,
        errors=["Evolution has an instance of that name that is not ours; it was left alone"]
        if foreign
        else [],
    )


def failure(view: SagaView, history: Iterable[Recorded]) -> Problem:
    """The 502 of a saga that was rolled back or is parked: what failed, what was undone."""
    told = [recorded.event for recorded in history]
    undone = [event.step for event in told if isinstance(event, CompensationSucceeded)]
    step = next(
        (e.step for e in reversed(told) if isinstance(e, CompensationBegan | SagaFailed)), None
    )
    failed = {"step": step, "code": view.code, "message": view.message}
    location = f"/sagas/{view.saga_id}"
    more: dict[str, Any] = {
        "saga_id": str(view.saga_id),
        "instance_name": view.instance_name,
        "failed": failed,
        "undone": undone,
        "location": location,
    }
    if view.status == "compensated":
        end = next((e for e in reversed(told) if isinstance(e, SagaCompensated)), None)
        why = end.message if end else view.message
        if end:
            failed |= {"code": end.code, "message": end.message}
        detail = f"{why}; undone: {', '.join(undone) or 'nothing, there was nothing to undo'}"
        return Problem("rolled_back", detail, headers={"Location": location}, **more)
    detail = f"parked at {step}: {view.message}; look at {location}, then replay it there"
    return Problem("parked", detail, headers={"Location": location}, **more)
