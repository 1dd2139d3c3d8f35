"""Sagas over HTTP: status, history, reason, replay plan, replay and cancel."""

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse
from uuid_utils.compat import uuid7

from evosaga.events.commands import BadCommand, Command
from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import Caller, CurrentCaller, visible
from evosaga.orchestrator.api.concurrency import PlaceOfAStream
from evosaga.orchestrator.api.dependencies import AppContext, Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, json_body, problems
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.query_params import SINCE, Since, StatusFilter
from evosaga.orchestrator.api.reads import Reads
from evosaga.orchestrator.api.saga_watcher import Watching
from evosaga.orchestrator.api.sse import last_seen, tell
from evosaga.orchestrator.api.submission import (
    IdempotencyKey,
    as_it_is,
    body_object,
    command_id,
    submit,
)
from evosaga.orchestrator.commands.replay import plan_of
from evosaga.orchestrator.config.receivers import runbook_of
from evosaga.orchestrator.queries.sagas import Filter, SagaView, find_saga, history, list_sagas
from evosaga.orchestrator.queries.why import why_of

router: Final = APIRouter(tags=["sagas"])
_MOST_EVENTS: Final = 1000
_STEERING: Final = (
    *("unknown_saga", "conflicting_duplicate", "invalid_data", "oversized", "malformed_json"),
    *EVERYWHERE,
)
"""The problems of every route about one saga."""
_MESSAGE: Final = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "id": {"type": "string", "description": "the event's sequence"},
        "event": {"type": "string", "description": "the event's type, and at the end `over`"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.get(
    "/sagas",
    summary="Sagas, newest first",
    operation_id="listSagas",
    responses=problems("invalid_data", "bad_cursor", *EVERYWHERE),
)
async def listing(
    who: CurrentCaller,
    reads: Reads,
    status: StatusFilter | None = None,
    saga: Annotated[str | None, Query(max_length=200, examples=["create-integration"])] = None,
    organization_id: UUID | None = None,
    instance_name: Annotated[str | None, Query(max_length=200)] = None,
    code: Annotated[str | None, Query(max_length=200, description="why it stopped")] = None,
    since: Annotated[Since | None, SINCE] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> schemas.SagaPage:
    """A page. The same filters with its `cursor` give the next one."""
    if organization_id is not None and not visible(who, organization_id):
        return schemas.SagaPage(sagas=[], cursor=None)
    wanted = Filter(
        status=status,
        saga=saga,
        organization_id=organization_id or who.organization_id,
        instance_name=instance_name,
        since=since,
        code=code,
    )
    page, after = await list_sagas(reads.pool, wanted, limit=limit, cursor=cursor)
    return schemas.SagaPage(sagas=[schemas.saga_shape(view) for view in page], cursor=after)


@router.get(
    "/sagas/{saga_id}",
    summary="One saga",
    operation_id="getSaga",
    responses=problems("unknown_saga", *EVERYWHERE),
)
async def one(saga_id: str, who: CurrentCaller, here: Context) -> schemas.SagaShape:
    """By its id, its command's id, or the name of an instance (then it is the newest of it)."""
    return schemas.saga_shape(await find(here, who, saga_id))


@router.get(
    "/sagas/{saga_id}/events",
    summary="Its history",
    operation_id="listSagaEvents",
    response_model=schemas.EventPage,
    responses=problems("unknown_saga", "invalid_data", *EVERYWHERE),
)
async def events(
    saga_id: str,
    who: CurrentCaller,
    here: Context,
    limit: Annotated[int, Query(ge=1, le=_MOST_EVENTS)] = _MOST_EVENTS,
    cursor: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1,
) -> Response:
    """The events in order. `cursor` is the sequence of the last one you have."""
    view = await find(here, who, saga_id)
    told = await history(here.pool, view.saga_id, cursor)
    page, rest = told[:limit], told[limit:]
    body = b",".join(schemas.cloud_event(view, recorded) for recorded in page)
    after = f'"{page[-1].sequence}"' if rest else "null"
    return Response(
        b'{"events":[' + body + b'],"cursor":' + after.encode() + b"}",
        media_type="application/json",
    )


@router.get(
    "/sagas/{saga_id}/stream",
    summary="Its history and what follows, as server-sent events",
    operation_id="streamSagaEvents",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": _MESSAGE}}},
        204: {"description": "it is over, and `Last-Event-ID` was its last event"},
        **problems("unknown_saga", "too_many_streams", *EVERYWHERE),
    },
)
async def stream(
    saga_id: str,
    request: Request,
    who: CurrentCaller,
    here: Context,
    watch: Watching,
    _place: PlaceOfAStream,
) -> Response:
    """A message an event: `id` is its sequence, `event` its type, `data` the CloudEvent.

    The last one is `event: over`. Comments keep a silent connection open. Who comes back with
    `Last-Event-ID` misses nothing.
    """
    view = await find(here, who, saga_id)
    seen = last_seen(request.headers.get("last-event-id"))
    if view.over and seen >= view.sequence - 1:
        return Response(status_code=204)  # tells a browser not to reconnect
    return StreamingResponse(
        tell(here.pool, watch, view, seen),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get(
    "/sagas/{saga_id}/why",
    summary="Why it is where it is",
    operation_id="explainSaga",
    responses=problems("unknown_saga", *EVERYWHERE),
)
async def why(saga_id: str, who: CurrentCaller, here: Context) -> schemas.WhyShape:
    """What it waits for, or what went wrong, and what can be done about it."""
    view = await find(here, who, saga_id)
    told = await why_of(here.pool, here.registry, view, here.explain(view.saga))
    more = {"saga_id": view.saga_id, "runbook": runbook_of(here.settings, view.code)}
    return schemas.WhyShape.model_validate(told.as_dict() | more)


@router.get(
    "/sagas/{saga_id}/replay-plan",
    summary="What a replay would do",
    operation_id="getReplayPlan",
    responses=problems("unknown_saga", *EVERYWHERE),
)
async def replay_plan(saga_id: str, who: CurrentCaller, here: Context) -> schemas.PlanShape:
    """Looks at Evolution, Postgres and Redis and says, step by step, what a replay would do."""
    view = await find(here, who, saga_id)
    plan = await plan_of(here.pool, here.gate.services, here.registry, view.saga_id)
    return schemas.PlanShape.model_validate(plan.as_dict() | {"saga_id": view.saga_id})


@router.post(
    "/sagas/{saga_id}/replay",
    summary="Try again",
    operation_id="replaySaga",
    status_code=202,
    response_model=schemas.Submitted,
    responses=problems("not_replayable", "blocked", *_STEERING),
    openapi_extra=json_body(
        schemas.Reason.model_json_schema(), {"reason": "Evolution is back"}, required=False
    ),
)
async def replay(
    saga_id: str,
    request: Request,
    who: CurrentCaller,
    here: Context,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A parked saga goes on where it stood; a rolled back one starts anew, under a new id."""
    return await _steer("saga.replay", saga_id, request, who, here, idempotency_key)


@router.post(
    "/sagas/{saga_id}/cancel",
    summary="Stop and undo",
    operation_id="cancelSaga",
    status_code=202,
    response_model=schemas.Submitted,
    responses=problems("not_cancellable", *_STEERING),
    openapi_extra=json_body(
        schemas.Reason.model_json_schema(), {"reason": "it was a mistake"}, required=False
    ),
)
async def cancel(
    saga_id: str,
    request: Request,
    who: CurrentCaller,
    here: Context,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Possible until its point of no return."""
    return await _steer("saga.cancel", saga_id, request, who, here, idempotency_key)


async def find(here: AppContext, who: Caller, reference: str) -> SagaView:
    """The saga. Raises the 404 when it does not exist or the caller may not see it."""
    view = await find_saga(here.pool, reference, who.organization_id)
    if view is None or not visible(who, view.organization_id):
        said = f"no saga, command or instance is called {reference[:80]!r}"
        raise Problem("unknown_saga", said)
    return view


async def _steer(
    type_: str, reference: str, request: Request, who: Caller, here: AppContext, key: str | None
) -> Response:
    body = await body_object(request, required=False)
    view = await find(here, who, reference)
    data: dict[str, Any] = {"saga_id": str(view.saga_id)} | body
    if data["saga_id"] != str(view.saga_id):
        raise BadCommand("invalid_data", "saga_id: the address names another saga than the body")
    # Without a key the id names the caller, since the saga's history keeps the id.
    id_ = command_id(key) if key else f"{who.name}/{uuid7()}"
    command = Command(id_, type_, data, organization_id=who.organization_id if key else None)
    accepted = await submit(here, who, command)
    return await as_it_is(here, accepted)
