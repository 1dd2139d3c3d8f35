"""The command stream over HTTP: the same JSON, the same checks, accepted while Redis is down."""

from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from evosaga.events.commands import BadCommand, Command, read_command
from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import Caller, CurrentCaller, visible
from evosaga.orchestrator.api.dependencies import AppContext, Context
from evosaga.orchestrator.api.openapi import EVERYWHERE, json_body, problems
from evosaga.orchestrator.api.problems import Problem, refused
from evosaga.orchestrator.api.submission import as_it_is, submit
from evosaga.orchestrator.commands.accept import checked, parse_request, unknown_type
from evosaga.orchestrator.commands.control import STEERING, ControlCommand
from evosaga.orchestrator.commands.results import Refused
from evosaga.orchestrator.queries.sagas import find_saga

router: Final = APIRouter(tags=["commands"])

SCHEMA: Final[dict[str, Any]] = {
    "title": "Command",
    "description": "A CloudEvents 1.0 event in JSON. `id` is the idempotency key.",
    "type": "object",
    "required": ["id", "type", "data"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 200},
        "type": {"type": "string", "minLength": 1, "maxLength": 200},
        "data": {"type": "object"},
        "source": {},
        "time": {},
        "specversion": {"const": "1.0"},
        "correlationid": {"type": "string", "minLength": 1, "maxLength": 200},
        "causationid": {"type": "string", "minLength": 1, "maxLength": 200},
        "traceparent": {"description": "W3C Trace Context; what is none is left out"},
    },
}
EXAMPLE: Final[dict[str, Any]] = {
    "id": schemas.SAGA_ID,
    "type": "integration.create",
    "data": {
        "organization_id": schemas.ORGANIZATION_ID,
        "clinic_id": schemas.CLINIC_ID,
        "name": "Clínica Sol",
    },
}
OPEN_TO_ORGANIZATIONS: Final = STEERING | {"integration.create", "integration.delete"}


@router.post(
    "/commands",
    summary="Give a command",
    operation_id="submitCommand",
    status_code=202,
    response_model=schemas.Submitted,
    responses=problems(
        "malformed_json",
        "not_utf8",
        "too_deep",
        "duplicate_key",
        "not_a_number",
        "number_out_of_range",
        "forbidden_character",
        "forbidden",
        "unknown_saga",
        "conflicting_duplicate",
        "not_replayable",
        "not_cancellable",
        "oversized",
        "wrong_shape",
        "unknown_type",
        "invalid_data",
        "too_many_sagas",
        *EVERYWHERE,
    ),
    openapi_extra=json_body(SCHEMA, EXAMPLE),
)
async def give(request: Request, who: CurrentCaller, here: Context) -> Response:
    """What can be published on the stream `evosaga:commands` can be posted here.

    `Location` names the saga to look at. A command that is refused, as a duplicate, is a saga
    too, whose status is `rejected`.
    """
    command = read_command(await request.body())
    try:
        return await _given(command, who, here)
    except BadCommand as refusal:
        raise refused(refusal, "body.data") from None


async def _given(command: Command, who: Caller, here: AppContext) -> Response:
    if who.organization_id is not None:
        command = await allowed(here, who, who.organization_id, command)
    organization, command = await understood(here, command)
    accepted = await submit(here, who, command, organization)
    return await as_it_is(here, accepted)


async def allowed(here: AppContext, who: Caller, own: UUID, command: Command) -> Command:
    """The command as this organization may give it. Raises when it may not."""
    if command.type in STEERING:
        wish: ControlCommand = checked(ControlCommand, command)
        view = await find_saga(here.pool, str(wish.saga_id))
        if view is None or view.saga_id != wish.saga_id or not visible(who, view.organization_id):
            raise BadCommand("unknown_saga", f"there is no saga {wish.saga_id}")
        return replace(command, organization_id=own)
    saga = here.registry.public.get(command.type)
    if saga is not None and saga.organization is not None:
        if saga.organization(parse_request(here.registry, command).input) != own:
            raise Problem("forbidden", "this key may only give commands about its own organization")
        return replace(command, organization_id=own)
    if command.type not in OPEN_TO_ORGANIZATIONS:
        if command.type in here.registry.public:
            raise Problem("forbidden", "this command needs a key without an organization")
        raise unknown_type(here.registry, command.type)
    input_ = parse_request(here.registry, command).input
    if input_.organization_id not in (None, own):
        raise Problem("forbidden", "this key may only give commands about its own organization")
    # A delete that names no organization would be one of anybody's integration.
    data = command.data | {"organization_id": str(own)}
    return replace(command, data=data, organization_id=own)


async def understood(here: AppContext, command: Command) -> tuple[UUID | None, Command]:
    """Whose saga the command would start, where it says so, and the command that is obeyed.

    One of our own is obeyed as the log has it. Raises when it may start none.
    """
    if command.type in STEERING:
        return None, command
    [request] = await here.gate.resolve([command])
    if isinstance(request, Refused):
        raise request.refusal
    whose = request.saga.organization
    organization = (
        whose(request.input) if whose else getattr(request.input, "organization_id", None)
    )
    return organization if isinstance(organization, UUID) else None, request.command
