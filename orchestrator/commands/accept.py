"""Accepts a batch of commands in one transaction: each starts a saga or is rejected.

A command becomes a saga by inserting its status row: the primary key recognises a repeated
command, the partial unique indexes let one open saga hold a business key or an instance name
(``claims``). A command that loses is *rejected*, which is recorded as a saga too, so that every
sender has an answer to look up.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import asyncpg
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from evosaga.events import syncpoints, trace_context
from evosaga.events.append import Append, write
from evosaga.events.commands import STEERING, BadCommand, Command
from evosaga.events.database import Connection, Pool
from evosaga.events.model import FollowUp, SagaRejected, SagaStarted
from evosaga.orchestrator.commands.claims import Request as Request
from evosaga.orchestrator.commands.claims import TooSoon as TooSoon
from evosaga.orchestrator.commands.claims import claim_keys, insert_rows, known_hashes
from evosaga.orchestrator.commands.results import Accepted, Conflict, Duplicate, Rejected, Started
from evosaga.orchestrator.config import field_errors
from evosaga.orchestrator.engine.commit import WorkerTerms, next_commit
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.state import State
from evosaga.sagas.definition import Admission, Refusal
from evosaga.sagas.registry import SagaRegistry

_TRIES: Final = 5
_CONTENDED: Final = (asyncpg.TransactionRollbackError, asyncpg.UniqueViolationError)


def parse_request(registry: SagaRegistry, command: Command, *, doubtful: bool = False) -> Request:
    """Check a command against the saga it would start. Raises ``BadCommand``.

    ``doubtful``: it is from the stream, where what was published before it may still be on its way.
    """
    saga = registry.by_command.get(command.type)
    if saga is None:
        raise unknown_type(registry, command.type)
    return Request(command, saga, checked(saga.input, command, saga.patterns), doubtful)


def unknown_type(registry: SagaRegistry, type_: str) -> BadCommand:
    """There is no such command; those that people may give are named, our own are not."""
    known = ", ".join(sorted(STEERING.union(registry.public)))
    return BadCommand("unknown_type", f"there is no command {type_[:80]!r}; known: {known}")


def checked(
    model: type[Any], command: Command, patterns: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """The command's data as ``model``. Raises ``BadCommand`` naming the field, never its value.

    ``patterns``: what a pattern of the model asks for, in words.
    """
    try:
        return model.model_validate_json(json.dumps(command.data))
    except ValidationError as error:
        fields = [
            (".".join(str(part) for part in e["loc"]), _said(e, patterns))
            for e in error.errors(include_input=False, include_url=False)
        ]
        problems = [f"{where or 'data'}: {what}" for where, what in fields]
        raise BadCommand("invalid_data", "; ".join(problems)[:500], fields) from None


def _said(problem: ErrorDetails, patterns: Mapping[str, str]) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return patterns.get(problem["ctx"]["pattern"], problem["msg"])
    return field_errors.said(problem)


async def accept(
    pool: Pool, services: object, worker: str | None, requests: Sequence[Request]
) -> list[Accepted | Conflict]:
    """Accept a batch; the answers are in its order. Committed when this returns.

    Raises ``TooSoon`` when doubtful ones would be refused. Without a ``worker`` the sagas begin
    unowned and due, for whichever worker sweeps next.
    """
    for attempt in range(_TRIES):
        try:
            async with pool.acquire() as connection, connection.transaction():
                answers = await _accept(connection, services, worker, requests)
                await syncpoints.reach("acc.pre")
            return answers
        except _CONTENDED:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


async def dry_run(pool: Pool, services: object, request: Request) -> State:
    """What a new command would begin with, found out by accepting it and taking that back."""
    for _ in range(_TRIES):
        try:
            async with pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    (answer,) = await _accept(connection, services, None, [request])
                finally:
                    await transaction.rollback()
        except _CONTENDED:
            continue
        assert isinstance(answer, Started | Rejected)
        return answer.state
    raise asyncpg.SerializationError("others kept changing what this command depends on")


async def _accept(
    connection: Connection, services: object, worker: str | None, requests: Sequence[Request]
) -> list[Accepted | Conflict]:
    first: dict[UUID, Request] = {}
    for request in requests:
        first.setdefault(request.saga_id, request)
    hashes = await known_hashes(connection, list(first))
    fresh = [r for saga_id, r in first.items() if saga_id not in hashes]
    late = await _expired(connection, fresh)
    claims = await claim_keys(
        connection, services, worker, [r for r in fresh if r.saga_id not in late]
    )
    hashes |= claims.known
    states = await _record(
        connection,
        services,
        worker,
        [r for r in fresh if r.saga_id not in hashes],
        {**late, **claims.verdicts},
        claims.claimed,
    )
    return [_answer(r, first, hashes, states) for r in requests]


async def _expired(connection: Connection, requests: Sequence[Request]) -> dict[UUID, Refusal]:
    """The commands that have expired, by the database's clock."""
    if all(r.command.expires_at is None for r in requests):
        return {}
    now = await connection.fetchval("SELECT now()")
    return {
        r.saga_id: Refusal(
            "expired",
            too_late(at),
            organization_id=getattr(r.input, "organization_id", None),
            instance_name=getattr(r.input, "instance_name", None),
        )
        for r in requests
        if (at := r.command.expires_at) is not None and at <= now
    }


def too_late(at: datetime) -> str:
    """The sentence for a command that came after the moment its sender had set for it."""
    until = at.astimezone(UTC).isoformat(sep=" ", timespec="seconds")
    return f"it was to be obeyed before {until}; publish another one if it is still wanted"


def _answer(
    request: Request,
    first: dict[UUID, Request],
    hashes: dict[UUID, str],
    states: dict[UUID, State],
) -> Accepted | Conflict:
    saga_id = request.saga_id
    if (hashes.get(saga_id) or first[saga_id].hash) != request.hash:
        return Conflict(saga_id, request.command.id)
    if saga_id in hashes or first[saga_id] is not request:
        return Duplicate(saga_id)
    state = states[saga_id]
    return (Rejected if state.status == "rejected" else Started)(saga_id, state)


async def _record(
    connection: Connection,
    services: object,
    worker: str | None,
    requests: Sequence[Request],
    verdicts: dict[UUID, Admission | Refusal],
    claimed: set[UUID],
) -> dict[UUID, State]:
    """Write rejections and beginnings."""
    refused = [r for r in requests if r.saga_id not in claimed]
    await insert_rows(connection, refused, verdicts, status="rejected")
    appends = [_first_commit(services, r, verdicts[r.saga_id], worker) for r in requests]
    await write(connection, appends)
    return {append.saga_id: append.state for append in appends}


def _first_commit(
    services: object, request: Request, verdict: Admission | Refusal, worker: str | None
) -> Append[State]:
    """The first events: a rejection, or the start and the intent of the first step."""
    command, now = request.command, time.monotonic()
    live = SagaInstance(
        request.saga_id,
        request.saga,
        request.input,
        State(),
        command.correlation_id or str(request.saga_id),
        command.id,
        started_at=now,
        last_at=now,
    )
    terms = WorkerTerms(
        worker or "", lambda: worker is not None, math.inf, services, accepting=True
    )
    append = next_commit(live, _beginning(request, verdict), None, terms)
    assert append is not None
    return append


def _with_trace(facts: Mapping[str, Any], traceparent: str | None) -> Mapping[str, Any]:
    return facts if traceparent is None else {**facts, trace_context.FACT: traceparent}


def _beginning(request: Request, verdict: Admission | Refusal) -> SagaStarted | SagaRejected:
    about: dict[str, Any] = {
        "saga": request.saga.name,
        "version": request.saga.version,
        "command": request.command.type,
        "command_id": request.command.id,
        "command_hash": request.hash,
        "business_key": verdict.business_key,
        "organization_id": verdict.organization_id,
        "instance_name": verdict.instance_name,
        "input": request.input.model_dump(mode="json"),
    }
    if isinstance(verdict, Refusal):
        return SagaRejected(
            **about,
            code=verdict.code,
            message=verdict.message,
            existing_instance=verdict.existing_instance,
        )
    follow = verdict.follow_up
    return SagaStarted(
        **about,
        facts=_with_trace(verdict.facts, request.command.traceparent),
        deadline_seconds=verdict.deadline_seconds,
        behind=verdict.behind,
        follow_up=FollowUp(type=follow.type, data=dict(follow.data)) if follow else None,
    )
