"""Admission and business-key claims, inside the accepting transaction.

    admit -> claim keys -> lock predecessors -> admit again -> rehearse -> explain the losers

Admission is asked again after the claim, because only then is all that other workers committed in
between sure to be seen. A command that does not get its key is rejected with the open saga that
holds it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from evosaga.events.database import Connection
from evosaga.orchestrator.commands.conflicts import weigh_all
from evosaga.orchestrator.commands.request import Request as Request
from evosaga.orchestrator.engine.resources import handed
from evosaga.sagas.admission import Admission, AdmitTogether, Candidate, Refusal
from evosaga.sagas.conflicts import KEY_IN_USE, strangers
from evosaga.sagas.definition import admission_by_key


class AdmissionChanged(asyncpg.SerializationError):
    """What an admission relies on has changed meanwhile, as when Postgres can't serialise.

    The whole transaction is tried again.
    """


class TooSoon(Exception):
    """Doubtful commands would have been refused, for these reasons. Nothing was written."""

    def __init__(self, refusals: Mapping[UUID, Refusal]) -> None:
        super().__init__(f"{len(refusals)} commands")
        self.refusals = refusals


@dataclass(frozen=True, slots=True)
class Claims:
    """What became of a batch. Who was admitted holds a status row, but has no history yet."""

    verdicts: dict[UUID, Admission | Refusal]
    claimed: set[UUID]
    known: dict[UUID, str]
    """Those that another worker took just now, with the hash of what it took."""


async def claim_keys(
    connection: Connection, services: object, worker: str | None, requests: Sequence[Request]
) -> Claims:
    """Admit a batch and claim its keys, inside the caller's transaction.

    Raises ``AdmissionChanged``, and ``TooSoon``.
    """
    verdicts = await _admit(connection, services, requests)
    wanted = [r for r in requests if isinstance(verdicts[r.saga_id], Admission)]
    claimed = await insert_rows(connection, wanted, verdicts, status="running", owner=worker)
    held = [r for r in wanted if r.saga_id in claimed]
    await _lock_predecessors(connection, held, verdicts)
    for saga_id, second in (await _admit(connection, services, held)).items():
        verdicts[saga_id] = _confirmed(verdicts[saga_id], second)
    verdicts |= await _rehearse(connection, services, held, verdicts)
    others = [r.saga_id for r in requests if r.saga_id not in claimed]
    known = await known_hashes(connection, others)
    lost = [r for r in wanted if r.saga_id not in claimed and r.saga_id not in known]
    verdicts |= await _explain(connection, services, lost, verdicts)
    doubtful = [r.saga_id for r in requests if r.doubtful and r.saga_id not in known]
    refused = {id_: v for id_ in doubtful if isinstance(v := verdicts[id_], Refusal)}
    if refused:
        raise TooSoon(refused)
    return Claims(verdicts, claimed, known)


async def known_hashes(connection: Connection, saga_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The sagas of these that there are, with the hash of the command that asked for each."""
    if not saga_ids:
        return {}
    rows = await connection.fetch(_KNOWN, saga_ids)
    return {row["saga_id"]: row["command_hash"] for row in rows if row["saga_id"]}


async def _admit(
    connection: Connection, services: object, requests: Sequence[Request]
) -> dict[UUID, Admission | Refusal]:
    """Ask each admission once; sagas that share one are weighed together, in their order."""
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        saga = request.saga
        groups.setdefault(saga.admit or (saga.name, saga.version), []).append(request)
    verdicts: dict[UUID, Admission | Refusal] = {}
    for group in groups.values():
        said = await _said(connection, services, group)
        verdicts |= dict(zip([r.saga_id for r in group], said, strict=True))
    return verdicts | await weigh_all(connection, requests, verdicts)


async def _said(
    connection: Connection, services: object, group: Sequence[Request]
) -> Sequence[Admission | Refusal]:
    """What the admission of these says, which is the same one for all of them."""
    saga = group[0].saga
    admit = saga.admit
    if isinstance(admit, AdmitTogether):
        asked = [Candidate(r.saga_id, r.input, r.saga.on_conflict) for r in group]
        return await admit.run(connection, handed(services, saga.name), asked)
    commands = [(r.saga_id, r.input) for r in group]
    if admit is None:
        return await admission_by_key(saga)(connection, None, commands)
    return await admit(connection, handed(services, saga.name), commands)


async def _rehearse(
    connection: Connection,
    services: object,
    held: Sequence[Request],
    verdicts: dict[UUID, Admission | Refusal],
) -> dict[UUID, Admission | Refusal]:
    """Let those that were admitted try for what they will need, where a saga has something to."""
    groups: dict[Any, list[Request]] = {}
    for request in held:
        if request.saga.rehearse is not None and isinstance(verdicts[request.saga_id], Admission):
            groups.setdefault(request.saga.rehearse, []).append(request)
    found: dict[UUID, Admission | Refusal] = {}
    for rehearse, group in groups.items():
        ids = [r.saga_id for r in group]
        commands = [(r.saga_id, r.input) for r in group]
        own = handed(services, group[0].saga.name)
        said = await rehearse(connection, own, commands, [verdicts[id_] for id_ in ids])
        found |= dict(zip(ids, said, strict=True))
    return found


async def _lock_predecessors(
    connection: Connection, held: Sequence[Request], verdicts: dict[UUID, Admission | Refusal]
) -> None:
    """Lock predecessors FOR SHARE, so that none of them can end before this commit.

    Else the key could go to a newcomer that has seen neither the one ahead nor the one behind.
    """
    ahead = {v.behind for r in held if isinstance(v := verdicts[r.saga_id], Admission)}
    ahead -= {None, *(r.saga_id for r in held)}
    if ahead:
        await connection.execute(
            "SELECT FROM evosaga.sagas WHERE saga_id = ANY($1) ORDER BY saga_id FOR SHARE",
            list(ahead),
        )


def _confirmed(first: Admission | Refusal, second: Admission | Refusal) -> Admission | Refusal:
    """The second verdict. Row and history must agree, and the row says what the first one said."""
    if isinstance(first, Admission) and isinstance(second, Admission):
        same = (first.business_key, first.behind, first.organization_id, first.instance_name) == (
            second.business_key,
            second.behind,
            second.organization_id,
            second.instance_name,
        )
    else:
        same = isinstance(first, Admission) and first.behind is None
    if not same:
        raise AdmissionChanged("what this command found has changed meanwhile")
    if isinstance(second, Refusal):
        return Refusal(
            second.code,
            second.message,
            first.business_key,
            first.organization_id,
            first.instance_name,
            second.existing_instance,
        )
    return second


async def _explain(
    connection: Connection,
    services: object,
    lost: Sequence[Request],
    verdicts: dict[UUID, Admission | Refusal],
) -> dict[UUID, Admission | Refusal]:
    """Why these could not get their key: which open saga is in the way."""
    if not lost:
        return {}
    # An admission that looks at open sagas sees the holder by now, and has its own words for it.
    explained = await _admit(connection, services, lost)
    blind = {id_: v for id_, v in explained.items() if isinstance(v, Admission)}
    if any(_key(verdict) != _key(verdicts[saga_id]) for saga_id, verdict in blind.items()):
        raise AdmissionChanged("another place in the queue")
    rows = await connection.fetch(
        """
        SELECT saga, business_key, instance_name, organization_id FROM evosaga.open_sagas
        WHERE business_key = ANY($1) OR (instance_name = ANY($2) AND behind IS NULL)
        """,
        [verdict.business_key for verdict in blind.values()],
        [verdict.instance_name for verdict in blind.values()],
    )
    by_key = {row["business_key"]: row for row in rows}
    names = {row["instance_name"] for row in rows}
    for saga_id, verdict in blind.items():
        holder = by_key.get(verdict.business_key)
        if holder is None and verdict.instance_name not in names:
            raise AdmissionChanged("what was in the way has ended meanwhile")
        explained[saga_id] = _in_the_way(verdict, holder)
    return explained


def _in_the_way(verdict: Admission, holder: asyncpg.Record | None) -> Refusal:
    """``holder`` has the business key; None: another saga has the instance's name. One that belongs
    to another organization is not described.
    """
    if holder is None:
        message = f"another open saga uses the instance name {verdict.instance_name}"
        existing = verdict.instance_name
    elif strangers(verdict.organization_id, holder["organization_id"]):
        message, existing = KEY_IN_USE, verdict.instance_name
    else:
        message = f"a {holder['saga']} saga with the same business key is still open"
        existing = holder["instance_name"]
    return Refusal(
        "name_taken" if holder is None else "in_progress",
        message,
        verdict.business_key,
        verdict.organization_id,
        verdict.instance_name,
        existing,
    )


def _key(verdict: Admission | Refusal) -> tuple[str, UUID | None]:
    return verdict.business_key, verdict.behind if isinstance(verdict, Admission) else None


async def insert_rows(
    connection: Connection,
    requests: Sequence[Request],
    verdicts: dict[UUID, Admission | Refusal],
    *,
    status: str,
    owner: str | None = None,
) -> set[UUID]:
    """Insert status rows; a ``running`` one holds the business key.

    The ``owner`` is written at once, since changing it later would be a change in an index.
    """
    if not requests:
        return set()
    told = [verdicts[r.saga_id] for r in requests]
    rows = await connection.fetch(
        _INSERT_ROWS,
        [r.saga_id for r in requests],
        [r.saga.name for r in requests],
        [r.saga.version for r in requests],
        status,
        [verdict.business_key for verdict in told],
        [verdict.organization_id for verdict in told],
        [verdict.instance_name for verdict in told],
        [r.command.id for r in requests],
        [r.hash for r in requests],
        [r.command.correlation_id or str(r.saga_id) for r in requests],
        [verdict.behind if isinstance(verdict, Admission) else None for verdict in told],
        owner,
    )
    return {row["saga_id"] for row in rows}


# Planning the looks that follow anew each time, which Postgres prefers once the tables are large,
# would cost more than all the rest of a small batch. Said here, it takes no round trip of its own.
_KNOWN: Final = """
WITH planned_once AS MATERIALIZED (
    SELECT set_config('plan_cache_mode', 'force_generic_plan', true)
)
SELECT saga_id, command_hash FROM planned_once LEFT JOIN evosaga.sagas ON saga_id = ANY($1)
UNION ALL
SELECT saga_id, command_hash FROM evosaga.refused WHERE saga_id = ANY($1)
"""
_INSERT_ROWS: Final = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, organization_id,
    instance_name, command_id, command_hash, correlation_id, causation_id, next_sequence, behind,
    owner)
SELECT saga_id, saga, version, $4, business_key, organization_id, instance_name, command_id,
    command_hash, correlation_id, command_id, 0, behind, $12
FROM unnest($1::uuid[], $2::text[], $3::int[], $5::text[], $6::uuid[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::uuid[])
    AS new (saga_id, saga, version, business_key, organization_id, instance_name, command_id,
            command_hash, correlation_id, behind)
ORDER BY business_key
ON CONFLICT DO NOTHING RETURNING saga_id
"""
