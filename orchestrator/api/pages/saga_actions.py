"""Replay and cancel: first a page that shows the plan, then the button."""

from typing import Any, Final
from uuid import UUID

from fastapi import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from evosaga.events.commands import Command
from evosaga.orchestrator.api.auth import Caller
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages.forms import (
    Form,
    PageProblem,
    Reader,
    Submitted,
    frame,
    page_router,
    parts,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.api.pages.saga_view import cancellation
from evosaga.orchestrator.api.pages.sagas import fold, its_history, its_view
from evosaga.orchestrator.api.submission import submit
from evosaga.orchestrator.commands.replay import plan_of
from evosaga.orchestrator.queries.sagas import SagaView

router: Final = page_router()


@router.get(ROOT + "/sagas/{saga_id}/replay")
async def replay_plan(request: Request, who: Reader, saga_id: str) -> Response:
    """The replay plan, from fresh reads of the three stores; nothing is changed."""
    here = parts(request)
    view = await its_view(here, who, saga_id)
    plan = await plan_of(here.pool, here.gate.services, here.registry, view.saga_id)
    return respond(
        "replay.html",
        **frame(request, who, "sagas"),
        saga=view,
        plan=plan,
        clinic=await _clinic(here, view),
        id=str(uuid7()),
    )


@router.post(ROOT + "/sagas/{saga_id}/replay")
async def replay(request: Request, who: Reader, submitted: Submitted, saga_id: str) -> Response:
    """Replay the saga."""
    return await _steer(request, who, submitted, saga_id, "saga.replay")


@router.get(ROOT + "/sagas/{saga_id}/cancel")
async def cancel_plan(request: Request, who: Reader, saga_id: str) -> Response:
    """What a cancel would do, from the recorded history."""
    here = parts(request)
    view = await its_view(here, who, saga_id)
    state = fold(await its_history(here, view))
    if state is None:
        raise PageProblem(409, "That can't be done", "This release can't read its history.")
    plan = cancellation(here.registry.find(view.saga, view.version), state)
    return respond(
        "cancel.html",
        **frame(request, who, "sagas"),
        saga=view,
        plan=plan,
        clinic=await _clinic(here, view),
        id=str(uuid7()),
    )


@router.post(ROOT + "/sagas/{saga_id}/cancel")
async def cancel(request: Request, who: Reader, submitted: Submitted, saga_id: str) -> Response:
    """Cancel the saga."""
    return await _steer(request, who, submitted, saga_id, "saga.cancel")


async def _clinic(here: AppContext, view: SagaView) -> str | None:
    return (await here.names_of([view.saga_id])).get(view.saga_id)


async def _steer(
    request: Request, who: Caller, submitted: Form, saga_id: str, type_: str
) -> Response:
    here = parts(request)
    view: SagaView = await its_view(here, who, saga_id)
    data: dict[str, Any] = {"saga_id": str(view.saga_id)}
    if submitted["reason"]:
        data["reason"] = submitted["reason"][:500]
    accepted = await submit(here, who, by_form(who, submitted, type_, data))
    return see_other(f"{ROOT}/sagas/{accepted.saga_id}")


def by_form(who: Caller, submitted: Form, type_: str, data: dict[str, Any]) -> Command:
    """A command under the id that the form contains, so that a second click does nothing.

    The id names the caller, since a saga's history keeps it.
    """
    try:
        id_ = f"{who.name}/{UUID(submitted['id'])}"
        return Command(id_, type_, data, organization_id=who.organization_id)
    except ValueError:
        raise PageProblem(400, "Unreadable form", "The form has lost its number.") from None
