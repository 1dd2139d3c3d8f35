"""Checks whether a database is suitable, before anything is changed in it."""

from typing import Any, Final

from evosaga.sagas.whatsapp.table_fit import Misfit


class Unfit(Exception):
    """The operator must change the database first; nothing was changed."""

    def __init__(self, misfits: list[Misfit]) -> None:
        super().__init__("; ".join(str(misfit) for misfit in misfits))
        self.misfits = misfits


class ReadOnly(Exception):
    """The database is read-only: a standby, which is ``passing``, or a setting."""

    def __init__(self, sentence: str, *, passing: bool) -> None:
        super().__init__(sentence)
        self.passing = passing


async def troubles(connection: Any) -> list[Misfit]:
    """What is wrong with the database itself, apart from its tables."""
    found: list[Misfit] = []
    row = await connection.fetchrow(_DATABASE)
    if row["encoding"] != "UTF8":
        cure = (
            "make another with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 and move there"
        )
        said = f"the database {row['name']} has the encoding {row['encoding']}, evosaga needs UTF8"
        found.append(Misfit(said, cure))
    return found


async def read_only(connection: Any) -> ReadOnly | None:
    """Why the database is read-only; None when it is not."""
    row = await connection.fetchrow(_DATABASE)
    if row["standby"]:
        cure = "let EVOSAGA_DATABASE_URL lead to the primary"
        return ReadOnly(f"it is a standby: {cure}", passing=True)
    if row["read_only"]:
        cure = f"ALTER DATABASE {row['quoted']} RESET default_transaction_read_only, or of the role"
        return ReadOnly(f"default_transaction_read_only is on: {cure}", passing=False)
    return None


async def rights(connection: Any, *, whatsapp: bool = True) -> list[Misfit]:
    """The rights that the migrating role lacks."""
    row = await connection.fetchrow(_RIGHTS)
    schemas = ("evosaga", "healthcare") if whatsapp else ("evosaga",)
    missing = [name for name in schemas if not row[f"{name}_there"]]
    if missing and not row["creates"]:
        made = "; ".join(f"CREATE SCHEMA {name} AUTHORIZATION {row['me']}" for name in missing)
        said = f"permission denied for database {row['database']} to make the schema {missing[0]}"
        grant = f"GRANT CREATE ON DATABASE {row['database']} TO {row['me']}"
        return [Misfit(said, f"{grant}; or, as somebody who may: {made}")]
    found = [
        Misfit(
            f"permission denied for schema {name}",
            f"GRANT USAGE, CREATE ON SCHEMA {name} TO {row['me']}",
        )
        for name in schemas
        if row[f"{name}_there"] and not row[f"{name}_usable"]
    ]
    if whatsapp and row["owner"] is not None and not row["owned"]:
        whose = f"healthcare.integrations belongs to {row['owner']}"
        said = f"{whose}, and only its owner can add an index"
        cure = f"ALTER TABLE healthcare.integrations OWNER TO {row['me']}"
        found.append(Misfit(said, f"migrate as that role, or let it give the table away: {cure}"))
    return found


_DATABASE: Final = """
SELECT current_database() AS name, quote_ident(current_database()) AS quoted,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
       current_setting('default_transaction_read_only') = 'on' AS read_only
"""
_RIGHTS: Final = """
SELECT quote_ident(current_user) AS me, quote_ident(current_database()) AS database,
       has_database_privilege(current_database(), 'CREATE') AS creates,
       bool_or(nspname = 'evosaga') IS TRUE AS evosaga_there,
       bool_or(nspname = 'healthcare') IS TRUE AS healthcare_there,
       bool_or(nspname = 'evosaga' AND usable) IS TRUE AS evosaga_usable,
       bool_or(nspname = 'healthcare' AND usable) IS TRUE AS healthcare_usable,
       max(quote_ident(owner)) AS owner, bool_and(owned) IS NOT FALSE AS owned
FROM (SELECT nspname::text, has_schema_privilege(pg_namespace.oid, 'CREATE')
                      AND has_schema_privilege(pg_namespace.oid, 'USAGE') AS usable,
             pg_get_userbyid(relowner)::text AS owner, pg_has_role(relowner, 'USAGE') AS owned
      FROM pg_namespace LEFT JOIN pg_class
          ON relnamespace = pg_namespace.oid AND nspname = 'healthcare'
         AND relname = 'integrations'
      WHERE nspname IN ('evosaga', 'healthcare')) AS found
"""
