"""What ``doctor`` and a start look at in Postgres, beyond whether it is there.

The same looks as ``evosaga migrate`` has (``evosaga.migrations.preflight``,
``evosaga.sagas.whatsapp.table_fit``), and who else may read what is there. Nothing is changed: the
row that is tried for is taken back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.errors import UNREACHABLE, WRONG, CliError

if TYPE_CHECKING:
    from evosaga.events.database import Connection, Pool
    from evosaga.migrations.preflight import ReadOnly

_LONG_APPEND: Final = 30.0
"""Seconds; our own are ended after 20."""


def said_of(refusal: ReadOnly, what: str) -> CliError:
    """A standby may become the primary, so it is worth coming back; a setting stays."""
    return CliError(UNREACHABLE if refusal.passing else WRONG, f"{what}: {refusal}")


async def require_writable(connection: Connection) -> None:
    """A sentence where Postgres takes nothing."""
    from evosaga.migrations.preflight import read_only

    if (refusal := await read_only(connection)) is not None:
        raise said_of(refusal, "nothing can be written to Postgres")


async def check_appends(pool: Pool) -> AsyncGenerator[Finding, None]:
    """How appends are ordered, and whether what follows from that can be kept."""
    from evosaga.events import append_order

    now = await append_order.read(pool)
    if now.drawn_ahead != 1:
        said = f"each session draws {now.drawn_ahead} positions at once, so events can be skipped"
        cure = (
            "ALTER SEQUENCE evosaga.saga_events_position_seq CACHE 1, and publish again what was "
            "recorded since it was changed: evosaga events republish --since …"
        )
        yield Finding("appends", "bad", said, cure)
    elif not now.parallel:
        yield Finding("appends", "ok", "commit one after another")
    elif now.older:
        said = f"{len(now.older)} of {now.workers} workers are of an older release"
        none = len(now.older) == now.workers
        cure = "they do not publish while appends are parallel: update them, or: appends --in-order"
        what = "no worker publishes events" if none else "commit in parallel"
        yield Finding("appends", "bad" if none else "warn", f"{what}, {said}", cure)
    elif now.longest.total_seconds() > _LONG_APPEND:
        said = f"one has been under way for {now.longest.total_seconds():.0f} s"
        cure = "no event after it is published: look at pg_stat_activity and pg_prepared_xacts"
        yield Finding("appends", "warn", f"commit in parallel, {said}", cure)
    else:
        yield Finding("appends", "ok", "commit in parallel")


async def check_database(pool: Pool) -> AsyncGenerator[Finding, None]:
    """The database, our table in it, and its doors."""
    from evosaga.migrations.preflight import read_only, troubles
    from evosaga.sagas.whatsapp.row_dry_run import rehearse
    from evosaga.sagas.whatsapp.table_fit import misfits

    async with pool.acquire() as connection:
        found = await troubles(connection)
        if (refusal := await read_only(connection)) is not None:
            said, _, cure = str(refusal).partition(": ")
            yield Finding("database", "bad", said, cure)
            return
        found += await misfits(connection)
        if not found:
            found += await rehearse(connection)
        for misfit in found:
            yield Finding("integrations", "bad" if misfit.fatal else "ok", misfit.said, misfit.cure)
        if not any(misfit.fatal for misfit in found):
            yield Finding("integrations", "ok", "a row of ours fits into healthcare.integrations")
        async for finding in _look_at_doors(connection):
            yield finding


async def _look_at_doors(connection: Connection) -> AsyncGenerator[Finding, None]:
    """What Supabase's roles, or everybody, can reach, and tokens that are kept in clear."""
    from evosaga.migrations.grants import IN_CLEAR, OPEN, UNGUARDED

    doors = await connection.fetch(OPEN)
    for door in doors:
        name, who = door["name"], door["who"]
        kind = "FUNCTION" if name.endswith(")") else "TABLE"
        shown = name.removesuffix("()")
        cure = f"REVOKE ALL ON {kind} {shown} FROM {who}"
        if kind == "TABLE":
            cure += f"; ALTER TABLE {shown} ENABLE ROW LEVEL SECURITY, with policies for who may"
        if door["guarded"]:
            said = f"{name} is granted to {who}; its row level security decides"
            yield Finding("doors", "ok", said)
        else:
            yield Finding("doors", "bad", f"{name} is open to {who}", cure)
    unguarded = [row["name"] for row in await connection.fetch(UNGUARDED)]
    if unguarded:
        said = f"no row level security on {', '.join(unguarded)}"
        yield Finding("doors", "warn", said, "run: evosaga migrate, as their owner")
    elif not doors:
        yield Finding("doors", "ok", "nothing of ours is open to anon, authenticated or PUBLIC")
    clear = await connection.fetchval(IN_CLEAR)
    if clear:
        said = f"{clear} webhook tokens are kept in clear"
        yield Finding("tokens", "warn", said, "run: evosaga migrate, which keeps their hashes")
