"""Starting any saga over HTTP, its result, and which sagas there are."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from evosaga.events.commands import BadCommand
from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import CurrentCaller
from evosaga.orchestrator.api.commands import allowed, understood
from evosaga.orchestrator.api.dependencies import AppContext, Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, json_body, problems
from evosaga.orchestrator.api.problems import Problem, refused
from evosaga.orchestrator.api.responses import failure
from evosaga.orchestrator.api.saga_watcher import Watching
from evosaga.orchestrator.api.submission import (
    IdempotencyKey,
    Patience,
    body_object,
    chosen,
    on_its_way,
    settled,
    submit,
)
from evosaga.orchestrator.engine.results import BadResult, result_of
from evosaga.orchestrator.engine.state import replay
from evosaga.orchestrator.queries.definitions import described
from evosaga.orchestrator.queries.sagas import SagaView, history

router: Final = APIRouter(tags=["sagas"])


class Start(BaseModel):
    """What a saga is started with: a command, as ``evosaga sagas`` lists them, and its data."""

    model_config = ConfigDict(extra="forbid")

    command: Annotated[str, Field(min_length=1, max_length=200, examples=["room.book"])]
    data: dict[str, Any] = Field(default_factory=dict, examples=[{"room": 101}])


class Ended(BaseModel):
    """A saga that is completed. ``result``: what its definition declares; null: nothing."""

    saga_id: UUID
    saga: str
    status: str
    result: dict[str, Any] | None


class LimitShape(BaseModel):
    """What all workers together may do with a resource. null: no limit of that kind."""

    name: str = Field(examples=["payments"])
    concurrency: int | None
    rate: str | None = Field(examples=["10/s"])


class StepShape(BaseModel):
    """A step of a definition. ``undo``: what undoes it; null: nothing has to, or nothing can."""

    name: str = Field(examples=["charge_card"])
    kind: Literal["compensatable", "pivot", "retryable"]
    attempts: int
    undo_attempts: int | None = Field(description="null: nothing undoes it")
    timeout: float = Field(description="seconds of one attempt")
    limits: list[LimitShape] = Field(description="of all workers together")
    probe: bool = Field(description="it can find out what became of an attempt without an answer")
    undo: str | None = Field(examples=["refund_card"])


class DefinitionShape(BaseModel):
    """A version of a saga. ``internal``: sagas and jobs start it, people do not."""

    saga: str = Field(examples=["book-room"])
    version: int
    command: str = Field(examples=["room.book"])
    internal: bool
    package: str = Field(description="the package it comes from")
    organizations: bool = Field(description="a key of an organization may start it")
    on_conflict: str | dict[str, str] = Field(
        description="what becomes of it when its business key is taken: refuse, wait or supersede"
    )
    keyed: bool = Field(description="it has a business key, which one open saga may have")
    steps: list[StepShape]
    data: dict[str, Any] = Field(description="JSON schema of the command's data")
    result: dict[str, Any] | None = Field(description="JSON schema of its result; null: none")


class DefinitionList(BaseModel):
    """Those that commands start come first, of each the newest version."""

    sagas: list[DefinitionShape]


@router.get(
    "/definitions",
    summary="The saga definitions of this release",
    operation_id="listDefinitions",
    responses=problems(*EVERYWHERE),
)
async def definitions(who: CurrentCaller, here: Context) -> DefinitionList:
    """Which commands there are, what their data looks like, and the steps of each saga."""
    return DefinitionList.model_validate({"sagas": described(here.registry)})


@router.post(
    "/sagas",
    summary="Start a saga",
    operation_id="startSaga",
    status_code=200,
    response_model=Ended,
    responses={
        202: {"model": schemas.Submitted, "description": "not over yet; it goes on by itself"},
        **problems(
            *("malformed_json", "not_utf8", "too_deep", "duplicate_key", "not_a_number"),
            *("number_out_of_range", "forbidden_character", "forbidden", "oversized"),
            *("wrong_shape", "unknown_type", "invalid_data", "refused", "in_progress"),
            *("conflicting_duplicate", "too_many_sagas", "too_many_waits"),
            *("rolled_back", "parked"),
            *EVERYWHERE,
        ),
    },
    openapi_extra=json_body(
        Start.model_json_schema(), {"command": "room.book", "data": {"room": 101, "guest": "ada"}}
    ),
)
async def start(
    request: Request,
    who: CurrentCaller,
    here: Context,
    watch: Watching,
    patience: Patience,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Starts the saga of a command and waits for it, up to `wait` seconds.

    Safe to repeat with the same `Idempotency-Key`: the answer is that of the same saga.
    """
    try:
        given = Start.model_validate(await body_object(request))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadCommand("wrong_shape", f"{where}: {first['msg']}") from None
    command = chosen(who, idempotency_key, given.command, given.data)
    try:
        if who.organization_id is not None:
            command = await allowed(here, who, who.organization_id, command)
        organization, command = await understood(here, command)
    except BadCommand as refusal:
        raise refused(refusal, "body.data") from None
    accepted = await submit(here, who, command, organization)
    view = await settled(watch, here.pool, accepted, patience)
    if not view.over:
        return on_its_way(view.saga_id, view.status, view.instance_name)
    return await _ended(here, view)


async def _ended(here: AppContext, view: SagaView) -> Response:
    location = {"Location": f"/sagas/{view.saga_id}"}
    if view.status == "rejected":
        code = "in_progress" if view.code == "in_progress" else "refused"
        more = {"reason": view.code, "saga_id": str(view.saga_id)}
        raise Problem(code, f"{view.message} ({view.code})", headers=location, **more)
    told = await history(here.pool, view.saga_id)
    if view.status != "completed":
        raise failure(view, told)
    saga = here.registry.find(view.saga, view.version)
    try:
        result = result_of(saga, replay(one.event for one in told)) if saga else None
    except BadResult:  # completed before its definition asked for what it does not have
        result = None
    ended = Ended(
        saga_id=view.saga_id,
        saga=view.saga,
        status=view.status,
        result=result.model_dump(mode="json") if result is not None else None,
    )
    return JSONResponse(ended.model_dump(mode="json"), headers=location)
