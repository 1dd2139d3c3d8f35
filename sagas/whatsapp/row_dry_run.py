"""Dry run of a row: an insert inside a savepoint that is always rolled back.

Only where ``healthcare.integrations`` has rules that are not ours (``Table.plain``): a foreign key,
a check, a trigger. What they refuse is refused before Evolution is asked for anything.
"""

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg

from evosaga.sagas.definition import Admission, AdmissionHeld, Refusal
from evosaga.sagas.outcome import Held, Rejected
from evosaga.sagas.whatsapp.row_refusals import GRANT, Altered, Swallowed, message_of, understood
from evosaga.sagas.whatsapp.services import Context, Services
from evosaga.sagas.whatsapp.steps import integration_row
from evosaga.sagas.whatsapp.table_fit import TABLE, Misfit

_Verdicts: TypeAlias = Sequence[Admission | Refusal]
_Try: TypeAlias = Callable[[Any, Sequence[Context]], Awaitable[None]]
_FOREIGN_KEYS: Final = 5
"""So many on the organization alone are looked through."""


class ConstraintsUnknown(AdmissionHeld, asyncpg.ObjectNotInPrerequisiteStateError):
    """The operator must change the table or our rights first; until then commands wait."""


# --- commands ----------------------------------------------------------------------------------


async def tried(
    connection: Any, services: Services, commands: Sequence[tuple[UUID, Any]], verdicts: _Verdicts
) -> list[Admission | Refusal]:
    """The verdicts, with a refusal where the table would not take the row, or not let it go.

    Raises ``ConstraintsUnknown`` for what an operator must mend.
    """
    if await services.table.plain(connection):
        return list(verdicts)
    contexts = {
        saga_id: Context(saga_id, data, services, facts=verdict.facts)
        for (saga_id, data), verdict in zip(commands, verdicts, strict=True)
        if isinstance(verdict, Admission) and "behind" not in verdict.facts
    }
    creates = [c for c in contexts.values() if c.input.asks == "create"]
    deletes = [c for c in contexts.values() if c.input.asks == "delete"]
    refused = await _try_for(connection, creates, _insert)
    refused |= await _try_for(connection, deletes, _remove)
    return [
        _refusal(refused[saga_id], verdict)
        if saga_id in refused and isinstance(verdict, Admission)
        else verdict
        for (saga_id, _), verdict in zip(commands, verdicts, strict=True)
    ]


def _refusal(why: Rejected, verdict: Admission) -> Refusal:
    key = verdict.business_key
    return Refusal(why.code, why.message, key, verdict.organization_id, verdict.instance_name)


async def _try_for(
    connection: Any, contexts: Sequence[Context], attempt: _Try
) -> dict[UUID, Rejected]:
    if not contexts:
        return {}
    error = await _outcome(connection, lambda: attempt(connection, contexts))
    if error is None or isinstance(error, asyncpg.LockNotAvailableError):
        return {}  # the row's own step waits for the transaction that holds it
    if len(contexts) > 1:  # find the one, and let its neighbours through
        refused: dict[UUID, Rejected] = {}
        for one in contexts:
            refused |= await _try_for(connection, [one], attempt)
        return refused
    match understood(error):
        case Rejected() as why:
            return {contexts[0].saga_id: why}
        case Held(message=message):
            raise ConstraintsUnknown(message) from error
    raise error


async def _outcome(connection: Any, attempt: Callable[[], Awaitable[None]]) -> Exception | None:
    """What went wrong, with everything taken back that went well."""
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        await connection.execute(_AT_ONCE)
        await attempt()
    except (Swallowed, Altered, asyncpg.PostgresError) as error:
        return error
    finally:
        if not connection.is_closed():
            await savepoint.rollback()
    return None


async def _insert(connection: Any, contexts: Sequence[Context]) -> None:
    made = await connection.fetch(
        f"{integration_row.INSERT} RETURNING id", *integration_row.rows_of(contexts)
    )
    if len(made) < len(contexts):
        raise Swallowed


async def _remove(connection: Any, contexts: Sequence[Context]) -> None:
    ids = [UUID(c.facts["integration_id"]) for c in contexts]
    there = await connection.fetchval(_THERE, ids)
    for change in (_MARK, _DELETE):
        if len(await connection.fetch(change, ids)) < there:
            raise Swallowed


# --- the table itself --------------------------------------------------------------------------


async def rehearse(connection: Any) -> list[Misfit]:
    """Try for a row of ours from its insert to its deletion; nothing of it stays.

    Outside of a transaction it is one of its own. A foreign key on the organization alone is no
    misfit of the table: it keeps out what it is meant to keep out.
    """
    found: list[Misfit] = []
    organization = uuid.uuid4()
    transaction = connection.transaction()
    await transaction.start()
    try:
        for _ in range(_FOREIGN_KEYS):
            error = await _outcome(connection, partial(_life, connection, organization))
            if error is None or isinstance(error, asyncpg.LockNotAvailableError):
                break
            known = await _known_organization(connection, error)
            if known is None:
                return [*found, _misfit(error)]
            found.append(_only_known(error))
            if not isinstance(known, UUID) or known == organization:
                break
            organization = known
        return found
    finally:
        if not connection.is_closed():
            await transaction.rollback()


async def _life(connection: Any, organization: UUID) -> None:
    id_ = uuid.uuid4()
    token = "sha256:" + "0" * 43
    config = json.dumps({"instance_name": f"wa-{id_}"})
    made = await connection.fetch(
        f"{integration_row.INSERT} RETURNING id", [id_], [organization], [config], [token]
    )
    if not made or not await connection.fetchval(_THERE, [id_]):
        raise Swallowed
    for status, number in (("connected", "5511999990000"), ("disconnected", "5511999990000")):
        if not (kept := await connection.fetchrow(_SETTLE, id_, status, number)):
            raise Swallowed
        if (kept["status"], kept["number"]) != (status, number):
            raise Altered(f"{status}, {number} became {kept['status']}, {kept['number']}")
    for change in (_MARK, _DELETE):
        if not await connection.fetch(change, [id_]):
            raise Swallowed


def _misfit(error: Exception) -> Misfit:
    why = understood(error)
    if why is None:
        raise error
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return Misfit(f"this role may not write rows of {TABLE} ({message_of(error)})", GRANT)
    if isinstance(error, asyncpg.FeatureNotSupportedError):
        return Misfit(f"a rule stands before {TABLE} ({message_of(error)})", "drop that rule")
    if isinstance(why, Held) and isinstance(error, asyncpg.PostgresError):
        cure = "its columns must be the documented"
        return Misfit(f"{TABLE} does not fit ({message_of(error)})", cure)
    return Misfit(why.message, _CURES.get(type(error), "change that rule, so that such rows fit"))


def _only_known(error: Exception) -> Misfit:
    name = getattr(error, "constraint_name", None)
    said = f"{TABLE} has the foreign key {name}"
    cure = "creates for an organization that it does not know are rejected"
    return Misfit(said, cure, fatal=False)


async def _known_organization(connection: Any, error: Exception) -> Any:
    """An organization that the violated foreign key knows and that has no integration yet.

    None when it is another kind of error; False when there is none.
    """
    if not isinstance(error, asyncpg.ForeignKeyViolationError):
        return None
    name = getattr(error, "constraint_name", None)
    key: Mapping[str, Any] | None = await connection.fetchrow(_FOREIGN_KEY, name)
    if key is None:
        return None
    try:
        async with connection.transaction():
            known = await connection.fetchval(
                f"SELECT {key['column']} FROM {key['other']} AS other "  # noqa: S608  # from the registry
                f"WHERE NOT EXISTS (SELECT FROM {TABLE} "
                f"WHERE organization_id = other.{key['column']}) LIMIT 1"
            )
    except asyncpg.PostgresError:  # we may not read it
        return False
    return known if known is not None else False


_CURES: Final[Mapping[type[Exception], str]] = {
    asyncpg.CheckViolationError: (
        "let it allow what evosaga writes: the status pending, connected, disconnected and "
        "deleting, no whatsapp_number at first, and a webhook_token of 50 characters"
    ),
    asyncpg.NotNullViolationError: "give it a default, or let it be null",
    asyncpg.UniqueViolationError: "let it hold for enabled rows alone",
}
_AT_ONCE: Final = "SET LOCAL lock_timeout = '500ms'; SET CONSTRAINTS ALL IMMEDIATE"
_THERE: Final = f"SELECT count(*) FROM {TABLE} WHERE id = ANY($1)"  # noqa: S608
_MARK: Final = f"""
UPDATE {TABLE} SET status = 'deleting', updated_at = now() WHERE id = ANY($1) RETURNING id
"""  # noqa: S608
_SETTLE: Final = f"""
UPDATE {TABLE} SET status = $2, whatsapp_number = $3, updated_at = now() WHERE id = $1
RETURNING status::text, whatsapp_number::text AS number
"""  # noqa: S608
_DELETE: Final = f"DELETE FROM {TABLE} WHERE id = ANY($1) RETURNING id"  # noqa: S608
_FOREIGN_KEY: Final = f"""
SELECT confrelid::regclass::text AS other, quote_ident(other.attname) AS column
FROM pg_constraint
JOIN pg_attribute AS mine ON mine.attrelid = conrelid AND mine.attnum = conkey[1]
JOIN pg_attribute AS other ON other.attrelid = confrelid AND other.attnum = confkey[1]
WHERE conrelid = '{TABLE}'::regclass AND conname = $1 AND contype = 'f'
  AND cardinality(conkey) = 1 AND mine.attname = 'organization_id'
"""  # noqa: S608
