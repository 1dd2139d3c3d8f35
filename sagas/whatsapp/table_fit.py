"""Whether our rows fit into a ``healthcare.integrations`` that another product has made.

The table may be older than evosaga, with columns, types and rules of its own. What it must have is
said here; whatever else it demands, a row tried for once finds out
(``evosaga.sagas.whatsapp.row_dry_run``).
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TABLE: Final = "healthcare.integrations"
ONE_ENABLED: Final = "one_enabled_integration_an_organization"
"""Our unique index, which makes the second enabled integration of an organization impossible."""
POLICY: Final = "evosaga_service"
"""The role of least privilege, and the policy that lets it see the rows of our tables."""

_TEXTS: Final = ("text", "varchar", "citext")
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "type": ("whatsapp",),
    "provider": ("evolution",),
    "status": ("pending", "connected", "disconnected", "deleting"),
}
_LENGTHS: Final = {"webhook_token": 50, "whatsapp_number": 15}
_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("uuid",),
    "organization_id": ("uuid",),
    "enabled": ("bool",),
    "config": ("jsonb",),
    "created_at": ("timestamptz", "timestamp"),
    "updated_at": ("timestamptz", "timestamp"),
}
_WRITTEN: Final = (*_TYPES, *_WORDS, *_LENGTHS)
_NEVER_ADDED: Final = ("id", "organization_id", "type", "provider", "status")
"""Columns that a migration can't add, since it can't know what to write into them."""
_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "p": "a partitioned table",
    "f": "a foreign table",
}
_AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Misfit:
    """Something about the table that keeps rows of ours out, and what to do about it.

    Not ``fatal``: only some rows are kept out, and those commands are rejected with the reason.
    """

    said: str
    cure: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.said}: {self.cure}"


async def misfits(connection: Any, *, migrated: bool = True) -> list[Misfit]:
    """What the registry says does not fit. Not ``migrated``: columns that can be added may miss.

    Nothing is wrong with a table that is not there yet.
    """
    table = await connection.fetchrow(_KIND)
    if table is None:
        return []
    if table["kind"] in _KINDS:
        cure = "evosaga needs an ordinary table of that name; put the other one elsewhere"
        return [Misfit(f"{TABLE} is {_KINDS[table['kind']]}", cure)]
    columns = {row["name"]: row for row in await connection.fetch(_COLUMNS)}
    wanted = _WRITTEN if migrated else _NEVER_ADDED
    if missing := [name for name in wanted if name not in columns]:
        said = f"{TABLE} has no column {', '.join(missing)}"
        cure = ", ".join(f"ADD COLUMN {name} {_as_ours(name)}" for name in missing)
        return [Misfit(said, f"ALTER TABLE {TABLE} {cure}")]
    found = (_misfit(name, column) for name, column in columns.items())
    return [misfit for misfit in found if misfit is not None]


def _misfit(name: str, column: Mapping[str, Any]) -> Misfit | None:
    alter = f"ALTER TABLE {TABLE} ALTER COLUMN {_quoted(name)}"
    shown = f"the column {name} of {TABLE}"
    if name not in _WRITTEN:
        if not column["required"]:
            return None
        return Misfit(
            f"{shown} must not be null and has no default, and evosaga can't know its value",
            f"{alter} SET DEFAULT …, or {alter} DROP NOT NULL",
        )
    if column["generated"]:
        return Misfit(f"{shown} is generated, so it can't be written", "make it an ordinary column")
    if name == "whatsapp_number" and column["never_null"]:
        said = f"{shown} must not be null, and at first there is none"
        return Misfit(said, f"{alter} DROP NOT NULL")
    return _wrong_type(name, column, shown, alter)


def _wrong_type(name: str, column: Mapping[str, Any], shown: str, alter: str) -> Misfit | None:
    said = f"{shown} is of type {column['shown']}"
    kind = column["kind"]
    if name in _TYPES:
        if kind in _TYPES[name]:
            return None
        ours = _TYPES[name][0]
        castable = kind in (*_TEXTS, "bpchar", "json")
        using = f"TYPE {ours} USING {name}::{ours}" if castable else f"TYPE {ours} USING …"
        return Misfit(f"{said}, and evosaga keeps a {ours} there", f"{alter} {using}")
    words = _WORDS.get(name, ())
    if column["labels"] is not None:
        if name in _LENGTHS:
            return Misfit(f"{said}, and evosaga keeps a text there", f"{alter} TYPE text")
        lacking = [word for word in words if word not in column["labels"]]
        if not lacking:
            return None
        cure = "; ".join(f"ALTER TYPE {column['shown']} ADD VALUE '{word}'" for word in lacking)
        return Misfit(f"{said}, which has no {' and no '.join(lacking)}", cure)
    if kind not in _TEXTS:
        using = f"TYPE text USING {name}::text"
        return Misfit(f"{said}, and evosaga keeps a text there", f"{alter} {using}")
    longest = max((len(word) for word in words), default=_LENGTHS.get(name, 0))
    if column["length"] is not None and column["length"] < longest:
        said = f"{said}, and evosaga writes up to {longest} characters"
        return Misfit(said, f"{alter} TYPE text")
    return None


def _quoted(name: str) -> str:
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'


def _as_ours(name: str) -> str:
    return _TYPES[name][0] if name in _TYPES else "text"


@dataclass(slots=True)
class Table:
    """What a process remembers of the table: whether it has rules that are not ours.

    It is looked at once a minute, so a create costs no round trip for it.
    """

    _plain: bool = False
    _until: float = field(default=0.0)

    async def plain(self, connection: Any) -> bool:
        """Whether the table refuses nothing but what our own index refuses."""
        if time.monotonic() >= self._until:
            about = (list(_WRITTEN), ONE_ENABLED, POLICY)
            self._plain = not await connection.fetchval(_STRANGE, *about)
            self._until = time.monotonic() + _AGAIN_SECONDS
        return self._plain


_FROM: Final = """
FROM pg_class AS the JOIN pg_namespace AS place ON place.oid = the.relnamespace
WHERE place.nspname = 'healthcare' AND the.relname = 'integrations'
  AND the.relkind IN ('r', 'v', 'm', 'p', 'f')
"""
_KIND: Final = f"SELECT the.relkind::text AS kind {_FROM}"
# Of a domain the type behind it counts.
_COLUMNS: Final = f"""
SELECT attname AS name, format_type(atttypid, atttypmod) AS shown, base.typname AS kind,
       attnotnull AS never_null, attgenerated <> '' OR attidentity = 'a' AS generated,
       attnotnull AND NOT atthasdef AND attidentity = '' AND own.typdefault IS NULL AS required,
       CASE WHEN base.typname = 'varchar' AND modifier > 4 THEN modifier - 4 END AS length,
       CASE WHEN base.typtype = 'e' THEN ARRAY(SELECT enumlabel::text FROM pg_enum
                                               WHERE enumtypid = base.oid) END AS labels
FROM (SELECT the.oid {_FROM}) AS found
JOIN pg_attribute ON attrelid = found.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_type AS own ON own.oid = atttypid
JOIN pg_type AS base ON base.oid = coalesce(nullif(own.typbasetype, 0), own.oid)
CROSS JOIN LATERAL (SELECT CASE own.typtype WHEN 'd' THEN own.typtypmod ELSE atttypmod END
                    AS modifier) AS length
ORDER BY attnum
"""  # noqa: S608  # constants only
# Constraints of others that point here keep rows from being deleted.
_STRANGE: Final = f"""
SELECT count(*) <> 1 OR bool_or(
    EXISTS (SELECT FROM pg_constraint WHERE found.oid IN (conrelid, confrelid)
            AND contype IN ('c', 'f', 'u', 'x', 't'))
    OR EXISTS (SELECT FROM pg_index JOIN pg_class AS named ON named.oid = indexrelid
               WHERE indrelid = found.oid AND indisunique AND relname <> $2
                 AND (NOT indisprimary OR indkey::text <> (
                     SELECT attnum::text FROM pg_attribute
                     WHERE attrelid = found.oid AND attname = 'id')))
    OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = found.oid AND NOT tgisinternal
               AND tgenabled <> 'D')
    OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = found.oid)
    OR EXISTS (SELECT FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
               WHERE attrelid = found.oid AND attnum > 0 AND NOT attisdropped
                 AND (typtype = 'd' OR CASE WHEN attname = ANY($1)
                     THEN attgenerated <> '' OR attidentity = 'a'
                     ELSE attnotnull AND NOT atthasdef AND attidentity = '' END))
    OR (row_security_active(found.oid)
        AND (SELECT array_agg(polname::text) FROM pg_policy WHERE polrelid = found.oid)
            IS DISTINCT FROM ARRAY[$3::text])
    OR NOT has_table_privilege(found.oid, 'INSERT')
    OR NOT has_table_privilege(found.oid, 'UPDATE')
    OR NOT has_table_privilege(found.oid, 'DELETE'))
FROM (SELECT the.oid {_FROM} AND the.relkind = 'r') AS found
"""  # noqa: S608
