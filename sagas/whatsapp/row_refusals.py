"""What it means that Postgres refuses a row of ours in ``healthcare.integrations``.

The table may have rules that are not ours: a foreign key, a check, a trigger, a policy.
"""

from typing import Final

import asyncpg

from evosaga.sagas.outcome import Held, Rejected
from evosaga.sagas.whatsapp.table_fit import ONE_ENABLED, TABLE

REFUSED: Final = "row_refused"
"""The table has a rule that keeps this very row out; it stays out until a person changes either."""
FORBIDDEN: Final = "postgres_forbids"
UNFIT: Final = "table_unfit"
_LONGEST: Final = 200
GRANT: Final = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE}, and look at its policies"


class Swallowed(Exception):
    """A trigger, a rule or a policy let the row disappear without a word."""


class Altered(Exception):
    """A trigger wrote something else than it was given."""


def understood(error: BaseException) -> Rejected | Held | None:
    """What became of an effect on the table that Postgres refused; None: it is no such refusal."""
    if isinstance(error, Altered):
        return Rejected(REFUSED, f"a trigger of {TABLE} changes what is written: {error}")
    if isinstance(error, Swallowed):
        return Rejected(REFUSED, f"a trigger, a rule or a policy of {TABLE} lets the row disappear")
    if not isinstance(error, asyncpg.PostgresError) or _of_ours(error):
        return None
    state = error.sqlstate or ""
    if state == "42501":
        return Held(FORBIDDEN, f"Postgres forbids it ({message_of(error)}): {GRANT}")
    if state in ("42703", "42P01", "42804", "42883", "42704", "22P02", "428C9", "3F000", "0A000"):
        return Held(UNFIT, f"{TABLE} does not fit ({message_of(error)}): see evosaga doctor")
    if state[:2] in ("22", "23", "P0", "44"):
        return Rejected(REFUSED, _rule(error))
    return None


def _of_ours(error: asyncpg.PostgresError) -> bool:
    about = (getattr(error, "schema_name", None), getattr(error, "constraint_name", None))
    return about[0] == "evosaga" or about[1] == ONE_ENABLED


def _rule(error: asyncpg.PostgresError) -> str:
    """Which rule it was. What Postgres adds may quote the whole row, so it is left out."""
    name = getattr(error, "constraint_name", None)
    where = ".".join(
        part
        for part in (getattr(error, "schema_name", None), getattr(error, "table_name", None))
        if part
    )
    where = where or TABLE
    match error:
        case asyncpg.ForeignKeyViolationError() if where != TABLE:
            return f"the foreign key {name} of {where} still points at the row"
        case asyncpg.ForeignKeyViolationError():
            return f"the foreign key {name} of {TABLE} refuses the row: what it names is not there"
        case asyncpg.UniqueViolationError():
            other = "another row, perhaps a disabled one, has the same values"
            return f"the unique constraint {name} of {TABLE} refuses the row: {other}"
        case asyncpg.NotNullViolationError():
            column = getattr(error, "column_name", None)
            said = f"the column {column} of {where} must not be null"
            return f"{said}, and evosaga can't know its value"
        case asyncpg.IntegrityConstraintViolationError() if name:
            return f"the constraint {name} of {where} refuses the row"
    return f"{TABLE} refuses the row: {message_of(error)}"


def message_of(error: asyncpg.PostgresError) -> str:
    return " ".join(str(error.args[0] if error.args else "").split())[:_LONGEST]
