"""Commands over HTTP: their id, their way to the command handler, and how long a caller waits."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Final
from uuid import UUID

import asyncpg
import structlog
from fastapi import Depends, Header, Query, Request
from starlette.responses import JSONResponse
from uuid_utils.compat import uuid7

from evosaga.events import trace_context
from evosaga.events.commands import BadCommand, Command, checked_text, read_json, saga_id_of
from evosaga.events.database import Pool
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.api.auth import Caller, CurrentCaller
from evosaga.orchestrator.api.concurrency import WAITS, held
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.saga_watcher import SagaWatcher, Watching
from evosaga.orchestrator.api.schemas import Submitted
from evosaga.orchestrator.commands.results import Accepted, Duplicate, Rejected, Started
from evosaga.orchestrator.queries.sagas import SagaView, find_saga

_logger = structlog.get_logger("evosaga.api")
_COMMIT_SECONDS: Final = 20.0
_LONGEST_WAIT: Final = 300.0


async def patience(
    who: CurrentCaller,
    watch: Watching,
    wait: Annotated[
        float,
        Query(ge=0, le=_LONGEST_WAIT, allow_inf_nan=False, description="seconds to wait for it"),
    ] = 30.0,
    prefer: Annotated[
        str | None,
        Header(alias="Prefer", description="`respond-async` answers at once; `wait=5` waits 5 s"),
    ] = None,
) -> AsyncIterator[float]:
    """The seconds that the caller wants to wait, and a place among those who do. Raises the 429,
    before anything is done.
    """
    seconds = _preferred(wait, prefer)
    if not seconds:
        yield seconds
        return
    with held(watch.held, WAITS, who):
        yield seconds


def _preferred(wait: float, prefer: str | None) -> float:
    """A preference we don't know is left alone."""
    if prefer is None:
        return wait
    said = [part.strip().lower() for part in re.split(r"[,;]", prefer)]
    for part in said:
        if asked := re.fullmatch(r'wait="?([0-9]{1,4})"?', part):
            return min(float(asked[1]), _LONGEST_WAIT)
    return 0.0 if "respond-async" in said else wait


Patience = Annotated[float, Depends(patience)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="the command's id: the same one again with the same content does nothing twice."
        " With a key of an organization it counts among that organization's ids alone",
    ),
]


def command_id(idempotency_key: str | None) -> str:
    """The id that the caller chose, or a new one, in order of time. Raises ``BadCommand``."""
    key = (idempotency_key or "").strip()
    if len(key) > 2 and key[0] == key[-1] == '"':  # as the IETF's draft writes it
        key = key[1:-1]
    return checked_text("Idempotency-Key", key) if key else str(uuid7())


def chosen(who: Caller, idempotency_key: str | None, type_: str, data: dict[str, Any]) -> Command:
    """A command under the id that the caller chose, or a new one. Raises ``BadCommand``.

    What an organization's key has chosen counts among that organization's ids alone.
    """
    among = who.organization_id if idempotency_key else None
    return Command(command_id(idempotency_key), type_, data, organization_id=among)


async def body_object(request: Request, *, required: bool = True) -> dict[str, Any]:
    """The body as a JSON object, read as strictly as a command. Raises ``BadCommand``."""
    raw = await request.body()
    if not raw and not required:
        return {}
    body = read_json(raw)
    if not isinstance(body, dict):
        raise BadCommand("wrong_shape", "the body must be a JSON object")
    return body


async def submit(
    here: AppContext, who: Caller, command: Command, organization_id: UUID | None = None
) -> Accepted:
    """Hand a command to the handler. Once this returns it is committed.

    ``organization_id``: whose saga it would start, for the limit on sagas under way.
    """
    if command.organization_id is not None and await here.pool.fetchval(
        _STORED, saga_id_of(command.id), command.organization_id
    ):
        # By an older release, or from the stream: it keeps its id, and this is a repetition.
        command = replace(command, organization_id=None)
    if command.traceparent is None:
        command = replace(command, traceparent=trace_context.incoming.get())
    if who.organization_id is not None:
        await _own_name(here, who.organization_id, command)
    if organization_id is not None:
        await _room(here, command, organization_id)
    async with asyncio.timeout(_COMMIT_SECONDS):
        accepted = await _through(here, command)
    _logger.info(
        "command over http",
        caller=who.name,
        type=command.type,
        saga_id=str(accepted.saga_id),
        became=accepted.kind,
    )
    return accepted


async def _through(here: AppContext, command: Command) -> Accepted:
    """The handler's answer. Retries when it loses against others about the same integration."""
    while True:
        try:
            return await here.gate.submit(command)
        except (asyncpg.TransactionRollbackError, asyncpg.UniqueViolationError):
            await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311  # only to drift apart


async def settled(watch: SagaWatcher, pool: Pool, accepted: Accepted, seconds: float) -> SagaView:
    """The saga once it is over, or as it is after so many seconds."""
    there = (
        not isinstance(accepted, Duplicate)
        or await find_saga(pool, str(accepted.saga_id)) is not None
    )
    if seconds > 0 and not isinstance(accepted, Rejected) and there:
        await watch.over(accepted.saga_id, seconds)
    view = await find_saga(pool, str(accepted.saga_id))
    if view is None:
        detail = (
            "this command was rejected before, and the answer is no longer kept; nothing was "
            "touched for it: send it again under another id if it is still wanted"
        )
        raise Problem("no_longer_kept", detail)
    return view


def on_its_way(saga_id: UUID, status: str | None, instance_name: str | None) -> JSONResponse:
    """202: committed, and where to look."""
    location = f"/sagas/{saga_id}"
    told = Submitted.model_validate(
        {
            "saga_id": saga_id,
            "status": status,
            "instance_name": instance_name,
            "location": location,
        }
    )
    return JSONResponse(told.model_dump(mode="json"), 202, {"Location": location})


async def as_it_is(here: AppContext, accepted: Accepted) -> JSONResponse:
    """202 for a saga that the caller does not wait for."""
    if isinstance(accepted, Started | Rejected):
        state = accepted.state
        assert state.start is not None
        return on_its_way(accepted.saga_id, state.status, state.start.instance_name)
    view = await find_saga(here.pool, str(accepted.saga_id))
    assert view is not None
    return on_its_way(view.saga_id, view.status, view.instance_name)


async def _own_name(here: AppContext, own: UUID, command: Command) -> None:
    """Refuse a create under the name that belongs to another saga, there or to come."""
    derived = _DERIVED.fullmatch(str(command.data.get("instance_name", "")))
    if derived is None or command.type != "integration.create":
        return
    its = UUID(derived[1])
    if its != command.saga_id and not await here.pool.fetchval(_STORED, its, own):
        said = "instance_name: wa- and a UUID is the name that a saga gives; choose another"
        raise BadCommand("invalid_data", f"{said}, or leave it out")


async def _room(here: AppContext, command: Command, organization_id: UUID) -> None:
    """Whether another saga of the organization may start. A repeated command always may."""
    most = here.settings.organization_sagas
    row = await here.pool.fetchrow(_ROOM, organization_id, command.saga_id, most)
    if row and row["active"] >= most and not row["known"]:
        detail = f"{most} sagas of this organization are under way; wait until some are over"
        raise Problem("too_many_sagas", detail, headers={"Retry-After": "5"})


_DERIVED: Final = re.compile("wa-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_STORED: Final = """
SELECT EXISTS (SELECT FROM evosaga.sagas WHERE saga_id = $1 AND organization_id = $2)
"""
_ROOM: Final = f"""
SELECT EXISTS (SELECT FROM evosaga.sagas WHERE saga_id = $2) AS known,
       (SELECT count(*) FROM (
            SELECT FROM evosaga.sagas
            WHERE organization_id = $1 AND {ACTIVE_STATUSES} LIMIT $3
        ) AS open_ones) AS active
"""  # noqa: S608  # constants only
