"""From command to saga, in one transaction for a whole batch.

A command becomes a saga by inserting its status row: the primary key recognises a repeated
command, the partial unique indexes let one open saga hold a business key or an instance name.
Whoever loses is *rejected*, which is a saga too, so that everybody gets an answer they can look
up. Admission is asked before the key is claimed and once more after: what another worker
committed in between is only then sure to be seen.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
from pydantic import ValidationError

from events.commands import BadCommand, Command
from events.database import Connection, Pool
from events.log import Append, Row, write
from events.model import FollowUp, SagaEvent, SagaRejected, SagaStarted
from orchestrator.decider import Run, State, advance, evolve, intent
from orchestrator.projection import LEASE_MARGIN, row
from sagas.catalogue import Catalogue
from sagas.definition import Admission, InCommit, Refusal, Saga
from sagas.world import World


class _HolderGone(Exception):
    """What was in the way has ended meanwhile: look again."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of one command.

    ``new``: a saga has started and its first intent is committed; the caller must run it.
    ``rejected``: refused with a reason, recorded. ``known``: seen before, nothing to do.
    ``conflicting``: the id was used for another body. ``steered``: a saga that is there was
    replayed or cancelled.
    """

    kind: Literal["new", "rejected", "known", "conflicting", "steered"]
    saga_id: UUID
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A command together with the saga it asks for and its checked input."""

    command: Command
    saga: Saga
    input: Any


def understand(catalogue: Catalogue, command: Command) -> Request:
    """Check a command against the saga it would start. Raises ``BadCommand``."""
    saga = catalogue.by_command.get(command.type)
    if saga is None:
        known = ", ".join(sorted(catalogue.by_command))
        raise BadCommand(
            "unknown_type", f"no saga starts with {command.type[:80]!r}; known: {known}"
        )
    return Request(command, saga, checked(saga.input, command))


def checked(model: type[Any], command: Command) -> Any:
    """The command's data as ``model``. Raises ``BadCommand`` naming the field, never its value."""
    try:
        return model.model_validate_json(json.dumps(command.data))
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(p) for p in e['loc']) or 'data'}: {e['msg']}"
            for e in error.errors(include_input=False, include_url=False)
        ]
        raise BadCommand("invalid_data", "; ".join(problems)[:500]) from None


async def accept(
    pool: Pool, world: World, worker: str | None, requests: Sequence[Request]
) -> list[Accepted]:
    """Accept a batch; the answers are in its order. Committed when this returns.

    Without a ``worker`` the sagas begin unowned and due, for whichever worker sweeps next.
    """
    for attempt in range(5):
        try:
            async with pool.acquire() as connection, connection.transaction():
                return await _accept(connection, world, worker, requests)
        except (asyncpg.TransactionRollbackError, asyncpg.UniqueViolationError, _HolderGone):
            if attempt == 4:
                raise
    raise AssertionError("unreachable")


async def _accept(
    connection: Connection, world: World, worker: str | None, requests: Sequence[Request]
) -> list[Accepted]:
    first: dict[UUID, Request] = {}
    for request in requests:
        first.setdefault(request.command.saga_id, request)
    hashes = await _known_hashes(connection, list(first))
    fresh = [r for saga_id, r in first.items() if saga_id not in hashes]

    verdicts = await _admit(connection, world, fresh)
    wanted = [r for r in fresh if isinstance(verdicts[r.command.saga_id], Admission)]
    claimed = await _claim(connection, wanted, verdicts)
    again = [r for r in wanted if r.command.saga_id in claimed]
    for saga_id, verdict in (await _admit(connection, world, again)).items():
        # The row was claimed under the first verdict's key, and history must say the same.
        verdicts[saga_id] = replace(verdict, business_key=verdicts[saga_id].business_key)
    lost = [r for r in wanted if r.command.saga_id not in claimed]
    # Another worker took the same command just now, or an open saga holds the key.
    hashes |= await _known_hashes(connection, [r.command.saga_id for r in lost])
    lost = [r for r in lost if r.command.saga_id not in hashes]
    verdicts |= await _explain(connection, lost, verdicts)

    states = await _record(
        connection,
        worker,
        [r for r in fresh if r.command.saga_id not in hashes],
        verdicts,
        claimed,
    )
    return [_answer(r, first, hashes, states) for r in requests]


def _answer(
    request: Request,
    first: dict[UUID, Request],
    hashes: dict[UUID, str],
    states: dict[UUID, State],
) -> Accepted:
    saga_id = request.command.saga_id
    known = hashes.get(saga_id) or first[saga_id].command.hash
    if known != request.command.hash:
        return Accepted("conflicting", saga_id)
    if saga_id in hashes or first[saga_id] is not request:
        return Accepted("known", saga_id)
    state = states[saga_id]
    kind: Literal["rejected", "new"] = "rejected" if state.status == "rejected" else "new"
    return Accepted(kind, saga_id, state)


async def _known_hashes(connection: Connection, saga_ids: Sequence[UUID]) -> dict[UUID, str]:
    rows = await connection.fetch(
        "SELECT saga_id, command_hash FROM evosaga.sagas WHERE saga_id = ANY($1)", saga_ids
    )
    return {row["saga_id"]: row["command_hash"] for row in rows}


async def _admit(
    connection: Connection, world: World, requests: Sequence[Request]
) -> dict[UUID, Admission | Refusal]:
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.saga.admit, []).append(request)
    verdicts: dict[UUID, Admission | Refusal] = {}
    for admit, group in groups.items():
        said = await admit(connection, world, [(r.command.saga_id, r.input) for r in group])
        verdicts |= dict(zip([r.command.saga_id for r in group], said, strict=True))
    return verdicts


async def _claim(
    connection: Connection, requests: Sequence[Request], verdicts: dict[UUID, Admission | Refusal]
) -> set[UUID]:
    """Insert the status rows as running; who gets one holds the business key."""
    rows = await _insert_rows(connection, requests, verdicts, status="running")
    return {row["saga_id"] for row in rows}


async def _explain(
    connection: Connection, lost: Sequence[Request], verdicts: dict[UUID, Admission | Refusal]
) -> dict[UUID, Admission | Refusal]:
    """Why these could not get their key: which open saga is in the way."""
    wanted = {r.command.saga_id: verdicts[r.command.saga_id] for r in lost}
    rows = await connection.fetch(
        """
        SELECT saga, business_key, instance_name FROM evosaga.sagas
        WHERE status IN ('running', 'compensating', 'failed')
          AND (business_key = ANY($1) OR instance_name = ANY($2))
        """,
        [verdict.business_key for verdict in wanted.values()],
        [verdict.instance_name for verdict in wanted.values()],
    )
    by_key = {row["business_key"]: row for row in rows}
    names = {row["instance_name"] for row in rows}
    explained: dict[UUID, Admission | Refusal] = {}
    for saga_id, verdict in wanted.items():
        holder = by_key.get(verdict.business_key)
        if holder is None and verdict.instance_name not in names:
            raise _HolderGone
        code = "in_progress" if holder else "name_taken"
        message = (
            f"a {holder['saga']} saga of this organization is still open"
            if holder
            else f"another open saga uses the instance name {verdict.instance_name}"
        )
        explained[saga_id] = Refusal(
            code,
            message,
            verdict.business_key,
            verdict.organization_id,
            verdict.instance_name,
            holder["instance_name"] if holder else verdict.instance_name,
        )
    return explained


async def _record(
    connection: Connection,
    worker: str | None,
    requests: Sequence[Request],
    verdicts: dict[UUID, Admission | Refusal],
    claimed: set[UUID],
) -> dict[UUID, State]:
    """Write rejections and beginnings."""
    refused = [r for r in requests if r.command.saga_id not in claimed]
    await _insert_rows(connection, refused, verdicts, status="rejected")
    states: dict[UUID, State] = {}
    appends = []
    for request in requests:
        saga_id = request.command.saga_id
        events, states[saga_id], status_row = _beginning(request, verdicts[saga_id], worker)
        appends.append(
            Append(
                saga_id,
                0,
                events,
                status_row,
                request.command.correlation_id or str(saga_id),
                request.command.id,
            )
        )
    await write(connection, appends)
    return states


def _beginning(
    request: Request, verdict: Admission | Refusal, worker: str | None
) -> tuple[list[SagaEvent], State, Row]:
    """The first events: a rejection, or the start and the intent of the first step."""
    about: dict[str, Any] = {
        "saga": request.saga.name,
        "version": request.saga.version,
        "command": request.command.type,
        "command_id": request.command.id,
        "command_hash": request.command.hash,
        "business_key": verdict.business_key,
        "organization_id": verdict.organization_id,
        "instance_name": verdict.instance_name,
        "input": request.input.model_dump(mode="json"),
    }
    first: SagaEvent
    if isinstance(verdict, Refusal):
        first = SagaRejected(
            **about,
            code=verdict.code,
            message=verdict.message,
            existing_instance=verdict.existing_instance,
        )
    else:
        follow = verdict.follow_up
        first = SagaStarted(
            **about,
            facts=verdict.facts,
            deadline_seconds=verdict.deadline_seconds,
            behind=verdict.behind,
            follow_up=FollowUp(type=follow.type, data=dict(follow.data)) if follow else None,
        )
    events, state, action = advance(request.saga, evolve(State(), first))
    lease = 0.0
    # A first step that joins a commit is left to the engine, which knows how.
    if worker is not None and isinstance(action, Run) and not isinstance(action.effect, InCommit):
        lease = action.step.timeout + LEASE_MARGIN
        events.append(intent(action, worker, lease))
        state = evolve(state, events[-1])
    return [first, *events], state, row(state, action, worker, lease)


async def _insert_rows(
    connection: Connection,
    requests: Sequence[Request],
    verdicts: dict[UUID, Admission | Refusal],
    *,
    status: str,
) -> list[Any]:
    if not requests:
        return []
    told = [verdicts[r.command.saga_id] for r in requests]
    return await connection.fetch(
        _INSERT_ROWS,
        [r.command.saga_id for r in requests],
        [r.saga.name for r in requests],
        [r.saga.version for r in requests],
        status,
        [verdict.business_key for verdict in told],
        [verdict.organization_id for verdict in told],
        [verdict.instance_name for verdict in told],
        [r.command.id for r in requests],
        [r.command.hash for r in requests],
        [r.command.correlation_id or str(r.command.saga_id) for r in requests],
        [verdict.behind if isinstance(verdict, Admission) else None for verdict in told],
    )


_INSERT_ROWS: Final = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, organization_id,
    instance_name, command_id, command_hash, correlation_id, causation_id, next_sequence, behind)
SELECT saga_id, saga, version, $4, business_key, organization_id, instance_name, command_id,
    command_hash, correlation_id, command_id, 0, behind
FROM unnest($1::uuid[], $2::text[], $3::int[], $5::text[], $6::uuid[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::uuid[])
    AS new (saga_id, saga, version, business_key, organization_id, instance_name, command_id,
            command_hash, correlation_id, behind)
ORDER BY business_key
ON CONFLICT DO NOTHING RETURNING saga_id
"""
