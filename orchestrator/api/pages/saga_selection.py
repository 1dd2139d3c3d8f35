"""Replay and cancel of several sagas: a page that says what would happen, then the button."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID, uuid5

from fastapi import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from evosaga.events.commands import BadCommand
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
from evosaga.orchestrator.api.pages.saga_actions import by_form
from evosaga.orchestrator.api.pages.saga_view import cancellation
from evosaga.orchestrator.api.pages.sagas import fold, its_history, its_view
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.submission import submit
from evosaga.orchestrator.commands.replay import plan_of
from evosaga.orchestrator.queries.sagas import SagaView

router: Final = page_router()

Verb = Literal["replay", "cancel"]
_HERE: Final = f"{ROOT}/selected-sagas"
_MOST: Final = 50
_AT_ONCE: Final = 5
_PATIENCE: Final = 15.0
"""Seconds for the looks at all of them together."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A selected saga, and what would happen to it; ``refused``: what did not, and why."""

    saga: SagaView
    allowed: bool
    said: str
    undo: Sequence[str] = ()


@router.get(_HERE)
async def plan(request: Request, who: Reader) -> Response:
    """What would happen to each; nothing is changed."""
    verb = _verb(request.query_params.get("do", ""))
    sagas = await _chosen(parts(request), who, request.query_params.getlist("id"))
    planned = await _plans(parts(request), verb, sagas)
    return await _page(request, who, verb, planned)


@router.post(_HERE)
async def act(request: Request, who: Reader, submitted: Submitted) -> Response:
    """Give each of them its command; those that are refused are named with the reason."""
    here = parts(request)
    verb = _verb(submitted["do"])
    sagas = await _chosen(here, who, submitted["ids"].split())
    refused = []
    for saga in sagas:
        try:
            await _command(here, who, submitted, verb, saga)
        except (BadCommand, Problem) as error:
            said = error.message if isinstance(error, BadCommand) else str(error.detail)
            refused.append(Planned(saga, False, said))
    if refused:
        return await _page(request, who, verb, refused, done=len(sagas) - len(refused))
    return see_other(f"{ROOT}/sagas")


async def _command(
    here: AppContext, who: Caller, submitted: Form, verb: Verb, saga: SagaView
) -> None:
    data: dict[str, Any] = {"saga_id": str(saga.saga_id)}
    if submitted["reason"]:
        data["reason"] = submitted["reason"][:500]
    try:  # of its own for each saga, and the same when the form is sent twice
        id_ = str(uuid5(UUID(submitted["id"]), str(saga.saga_id)))
    except ValueError:
        raise PageProblem(400, "Unreadable form", "The form has lost its number.") from None
    await submit(here, who, by_form(who, Form({"id": id_}), f"saga.{verb}", data))


def _verb(given: str) -> Verb:
    if given == "replay":
        return "replay"
    if given == "cancel":
        return "cancel"
    raise PageProblem(400, "Nothing to do", "Choose replay or cancel on the page of sagas.")


async def _chosen(here: AppContext, who: Caller, ids: Sequence[str]) -> list[SagaView]:
    """The sagas. Raises ``PageProblem`` for none, too many, and for one that is not there."""
    wanted = list(dict.fromkeys(ids))
    if not wanted:
        raise PageProblem(400, "No saga is selected", "Select some in the list of sagas first.")
    if len(wanted) > _MOST:
        raise PageProblem(400, "Too many sagas", f"Select at most {_MOST} at once.")
    return [await its_view(here, who, id_) for id_ in wanted]


async def _plans(here: AppContext, verb: Verb, sagas: Sequence[SagaView]) -> list[Planned]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(saga: SagaView) -> Planned:
        async with limit:
            return await (_replay(here, saga) if verb == "replay" else _cancel(here, saga))

    try:
        async with asyncio.timeout(_PATIENCE):
            return list(await asyncio.gather(*map(one, sagas)))
    except TimeoutError:
        said = "what it would find can't be said now: not all dependencies answered in time"
        return [Planned(saga, True, said) for saga in sagas]


async def _replay(here: AppContext, saga: SagaView) -> Planned:
    found = await plan_of(here.pool, here.services, here.registry, saga.saga_id)
    return Planned(saga, found.allowed, found.headline)


async def _cancel(here: AppContext, saga: SagaView) -> Planned:
    state = fold(await its_history(here, saga))
    if state is None:
        return Planned(saga, False, "This release can't read its history.")
    found = cancellation(here.registry.find(saga.saga, saga.version), state)
    return Planned(saga, found.allowed, found.headline, found.undo)


async def _page(
    request: Request, who: Caller, verb: Verb, planned: Sequence[Planned], done: int | None = None
) -> Response:
    here = parts(request)
    return respond(
        "selected_sagas.html",
        200 if done is None else 409,
        **frame(request, who, "sagas"),
        verb=verb,
        planned=planned,
        done=done,
        names=await here.names_of([one.saga.saga_id for one in planned]),
        id=str(uuid7()),
    )
