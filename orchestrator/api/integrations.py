"""Integrations over HTTP: create and delete as in the original system, and reads."""

import json
from typing import Any, Final

from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response

from evosaga.events.commands import BadCommand
from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import Caller, CurrentCaller, visible
from evosaga.orchestrator.api.dependencies import AppContext, Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, json_body, problems
from evosaga.orchestrator.api.problems import Problem, refused
from evosaga.orchestrator.api.responses import deleted, failure, results
from evosaga.orchestrator.api.saga_watcher import SagaWatcher, Watching
from evosaga.orchestrator.api.submission import (
    IdempotencyKey,
    Patience,
    body_object,
    chosen,
    on_its_way,
    settled,
    submit,
)
from evosaga.orchestrator.commands.accept import parse_request
from evosaga.orchestrator.commands.results import Duplicate
from evosaga.orchestrator.engine.state import OPEN
from evosaga.orchestrator.queries.sagas import (
    Filter,
    SagaView,
    history,
    list_sagas,
    newest_of_instance,
)
from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView, find_integration
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from evosaga.sagas.whatsapp.types import CANT_BE_HANDLED, unaddressable

router: Final = APIRouter(tags=["integrations"])

_EXAMPLE: Final = {
    "organization_id": schemas.ORGANIZATION_ID,
    "clinic_id": schemas.CLINIC_ID,
    "name": "Clínica Sol",
}
_REFUSALS: Final = problems(
    "malformed_json",
    "not_utf8",
    "too_deep",
    "duplicate_key",
    "not_a_number",
    "number_out_of_range",
    "forbidden_character",
    "forbidden",
    "oversized",
    "invalid_data",
    "wrong_shape",
    "name_taken",
    "in_progress",
    "refused",
    "rolled_back",
    "parked",
    "conflicting_duplicate",
    "too_many_sagas",
    "too_many_waits",
    *EVERYWHERE,
)
_REFUSALS[409]["description"] += "; or that there is one already, as in the original system"
_REFUSALS[409]["content"]["application/json"] = {"schema": schemas.Duplicate.model_json_schema()}
_FAILURES: Final = (
    "rolled_back",
    "parked",
    "conflicting_duplicate",
    "too_many_sagas",
    "too_many_waits",
)


@router.post(
    "/integrations/evolution/create",
    summary="Create a WhatsApp integration",
    operation_id="createIntegration",
    status_code=201,
    response_model=schemas.Created,
    responses={
        202: {"model": schemas.Submitted, "description": "not over yet; it goes on by itself"},
        **_REFUSALS,
    },
    openapi_extra=json_body(CreateIntegration.model_json_schema(), _EXAMPLE),
)
async def create(
    request: Request,
    who: CurrentCaller,
    here: Context,
    watch: Watching,
    patience: Patience,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Makes the instance, the row and the routing key, tells the workers and asks for a QR code.

    All of it or none: what can't be completed is undone. Safe to repeat with the same
    `Idempotency-Key`: the answer is that of the same saga.
    """
    body = await body_object(request)
    command = chosen(who, idempotency_key, "integration.create", body)
    organization = parse_request(here.registry, command).input.organization_id
    if not visible(who, organization):
        raise Problem("forbidden", "this key may only create for its own organization")
    accepted = await submit(here, who, command, organization)
    view = await settled(watch, here.pool, accepted, patience)
    if not view.over:
        return on_its_way(view.saga_id, view.status, view.instance_name)
    if view.status == "completed":
        return await _created(here, view)
    if view.status != "rejected":
        raise failure(view, await history(here.pool, view.saga_id))
    if await _is_duplicate(here, view):
        told = schemas.Duplicate(existing_instance=view.existing_instance)
        if (way_out := _no_delete(view.existing_instance)) is not None:
            told = told.model_copy(update={"message": way_out})
        return JSONResponse(told.model_dump(mode="json"), 409, _its_saga(view))
    raise _refusal(view)


def _no_delete(existing: str | None) -> str | None:
    """What to do where a delete is not possible."""
    if existing is None:
        return "The organization's row names no instance: remove or disable that row by hand"
    why = unaddressable(existing)
    return f"{CANT_BE_HANDLED} ({why})" if why else None


async def _is_duplicate(here: AppContext, view: SagaView) -> bool:
    """Whether an integration exists or is being created, so that a delete has to come first.

    If the earlier one is being deleted or undone or is parked, the caller has to wait instead.
    """
    if view.code != "in_progress" or view.existing_instance is None:
        return view.code == "integration_exists"
    ahead = await newest_of_instance(here.pool, view.existing_instance)
    making = ("running", "completed")
    return ahead is not None and ahead.saga == view.saga and ahead.status in making


async def _created(here: AppContext, view: SagaView) -> Response:
    done = results(await history(here.pool, view.saga_id))
    qr_code = await _cached_qr(here, str(view.instance_name))
    told = schemas.Created(
        saga_id=view.saga_id,
        integration_id=done.get("postgres", {}).get("integration_id", view.saga_id),
        instance_name=str(view.instance_name),
        qr_code=schemas.QrCode.model_validate(qr_code) if qr_code else None,
    )
    location = f"/integrations/evolution/{view.instance_name}"
    return JSONResponse(told.model_dump(mode="json"), 201, {"Location": location})


@router.delete(
    "/integrations/evolution/{instance_name}",
    summary="Delete a WhatsApp integration",
    operation_id="deleteIntegration",
    response_model=schemas.Deleted,
    responses={
        202: {"model": schemas.Submitted, "description": "not over yet; it goes on by itself"},
        **problems(
            "unknown_instance", "invalid_data", *_FAILURES, "in_progress", "refused", *EVERYWHERE
        ),
    },
)
async def delete(
    instance_name: str,
    who: CurrentCaller,
    here: Context,
    watch: Watching,
    patience: Patience,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Removes the instance, the row and the routing key, and tells the workers.

    Each of the four is true once it is seen to be gone. Who asks while a delete is under way
    waits for that one.
    """
    data = {"instance_name": instance_name}
    if who.organization_id is not None:
        data["organization_id"] = str(who.organization_id)
    command = chosen(who, idempotency_key, "integration.delete", data)
    try:
        parse_request(here.registry, command)
    except BadCommand as refusal:
        await find(here, who, instance_name)  # raises the 404 when it does not exist
        raise refused(refusal, "path") from None
    accepted = await submit(here, who, command)
    view = await settled(watch, here.pool, accepted, patience)
    if view.status == "rejected" and view.code == "in_progress":
        view = await _the_one_before(here, watch, view, patience)
    if not view.over:
        return on_its_way(view.saga_id, view.status, view.instance_name)
    if view.status == "rejected":
        raise _unknown(instance_name) if view.code == "not_found" else _refusal(view)
    told = await history(here.pool, view.saga_id)
    if view.status != "completed":
        raise failure(view, told)
    return JSONResponse(deleted(told).model_dump(mode="json"), headers=_its_saga(view))


def _its_saga(view: SagaView) -> dict[str, str]:
    """Headers that link to the saga: the original system's bodies have no field for it."""
    return {"Location": f"/sagas/{view.saga_id}"}


async def _the_one_before(
    here: AppContext, watch: SagaWatcher, mine: SagaView, patience: float
) -> SagaView:
    """The delete that was open when this one was accepted, to wait for it; else this one, refused.

    Most deletes wait in a queue of their own; this is for those that found it full or parked. The
    result is the same later, so a repeated id gets the same answer.
    """
    wanted = Filter(saga=mine.saga, instance_name=mine.instance_name)
    page, _ = await list_sagas(here.pool, wanted, limit=100)
    for other in page:
        was_open = other.status in OPEN or other.updated_at >= mine.created_at
        if other.status != "rejected" and was_open and other.created_at <= mine.created_at:
            return await settled(watch, here.pool, Duplicate(other.saga_id), patience)
    return mine


@router.get(
    "/integrations/evolution/{instance_name}",
    summary="One integration",
    operation_id="getIntegration",
    responses=problems("unknown_instance", *EVERYWHERE),
)
async def one(instance_name: str, who: CurrentCaller, here: Context) -> schemas.IntegrationShape:
    """Its state, its phone number, and the newest saga about it."""
    return schemas.integration_shape(await find(here, who, instance_name))


async def find(here: AppContext, who: Caller, instance_name: str) -> IntegrationView:
    """The integration. Raises the 404 when it does not exist or the caller may not see it."""
    view = await find_integration(here.pool, instance_name)
    if view is None or not visible(who, view.organization_id):
        raise _unknown(instance_name)
    return view


def _unknown(instance_name: str) -> Problem:
    return Problem("unknown_instance", f"no integration has the instance {instance_name[:80]!r}")


def _refusal(view: SagaView) -> Problem:
    """The problem for a saga that was rejected before anything changed."""
    code = view.code if view.code in ("name_taken", "in_progress") else "refused"
    location = f"/sagas/{view.saga_id}"
    return Problem(
        code,
        f"{view.message} ({view.code})",
        reason=view.code,
        saga_id=str(view.saga_id),
        existing_instance=view.existing_instance,
        headers={"Location": location},
    )


async def _cached_qr(here: AppContext, instance_name: str) -> dict[str, Any] | None:
    """The QR code in Redis; None without one or without Redis."""
    try:
        raw = await here.redis.get(f"evosaga:qr:{instance_name}")
    except RedisError:
        return None
    return dict(json.loads(raw)) if raw else None
