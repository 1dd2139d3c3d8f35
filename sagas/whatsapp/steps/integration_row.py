"""Rows of ``healthcare.integrations``. Every effect here joins the commit of its event.

The id of a row is the id of the saga that made it, which is what ties an instance on Evolution,
its row and its history together. Effects are set-based: many sagas share one statement. A row
that others have pointed at another instance meanwhile is theirs, and is left as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from evosaga.sagas.outcome import Done, Finding, Outcome, Rejected, Sighting
from evosaga.sagas.whatsapp.follow_ups import watch
from evosaga.sagas.whatsapp.ownership import stored
from evosaga.sagas.whatsapp.services import Context
from evosaga.sagas.whatsapp.types import server_entry

_encode: Final = json.JSONEncoder(ensure_ascii=False).encode
# The table may have no defaults for its times, so they are given.
INSERT: Final = """
INSERT INTO healthcare.integrations (id, organization_id, type, provider, status, enabled, config,
    webhook_token, created_at, updated_at)
SELECT id, organization_id, 'whatsapp', 'evolution', 'pending', true, config::jsonb, token,
    now(), now()
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])
    AS new (id, organization_id, config, token)
ORDER BY organization_id
"""
_SAVE: Final = f"{INSERT} ON CONFLICT DO NOTHING RETURNING id"
AS_STATUS: Final = (
    "(jsonb_populate_record(NULL::healthcare.integrations, "
    "jsonb_build_object('status', {}))).status"
)
"""A text as whatever type the column ``status`` has, which may be an enum."""


async def save_integrations(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """Insert the rows. The partial unique index, not a look beforehand, refuses a second one."""
    saved = await connection.fetch(_SAVE, *rows_of(contexts))
    ids = {row["id"] for row in saved}
    return [
        Done({"integration_id": str(c.saga_id)})
        if c.saga_id in ids
        else Rejected("integration_exists", "another row was made for this organization meanwhile")
        for c in contexts
    ]


def rows_of(contexts: Sequence[Context]) -> list[list[Any]]:
    """What ``INSERT`` is given, column by column; of a webhook token, what recognises it."""
    return [
        [c.saga_id for c in contexts],
        [c.input.organization_id for c in contexts],
        [_encode(_config(c)) for c in contexts],
        [stored(c.services.keys.webhook_token(c.saga_id, c.facts["key_id"])) for c in contexts],
    ]


async def unsave_integrations(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """Take back the rows that ``save_integrations`` made; only the saga's own."""
    return [*await _delete_rows(connection, contexts, [c.saga_id for c in contexts])]


async def mark_deleting(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """Mark the rows: from now on the integration is seen to be going away.

    A saga that was behind another may find nothing to mark, and then there is little left to do;
    but a delete that was accepted is carried out.
    """
    marked = await connection.fetch(
        """
        UPDATE healthcare.integrations AS row SET status = 'deleting', updated_at = now()
        FROM (SELECT row.id, row.status FROM healthcare.integrations AS row
              JOIN unnest($1::uuid[], $2::text[]) AS mine (id, instance_name) USING (id)
              WHERE row.config ->> 'instance_name' = mine.instance_name
              ORDER BY row.id FOR NO KEY UPDATE OF row) AS old
        WHERE row.id = old.id
        RETURNING row.id, coalesce(old.status::text, 'pending') AS status, (
            -- Each doubtful attempt may have sent a create that lands yet, but for the one that was
            -- found to have landed. What is older than the last look at such a place is settled.
            SELECT count(*) FILTER (WHERE type = 'step.failed' AND (data ->> 'outcome' = 'unknown'
                                    OR (data ->> 'in_doubt')::boolean))
                 > count(*) FILTER (WHERE type = 'step.succeeded'
                                    AND (data -> 'result' ->> 'adopted')::boolean)
            FROM evosaga.saga_events WHERE saga_id = row.id AND data ->> 'step' = 'evolution'
             AND recorded_at > now() - make_interval(secs => $3)
        ) AS may_land_late
        """,
        [_integration_id(c) for c in contexts],
        [c.facts["instance_name"] for c in contexts],
        max((c.services.watch_after[-1] for c in contexts), default=0.0),
    )
    found = {row["id"]: row for row in marked}
    return [_marked(c, found.get(_integration_id(c))) for c in contexts]


def _marked(ctx: Context, row: Mapping[str, Any] | None) -> Outcome:
    if row is not None:
        doubt = {"may_land_late": True} if row["may_land_late"] and "key_id" in ctx.facts else {}
        return Done({"status": row["status"], **doubt})
    if "behind" in ctx.facts or "forgotten" in ctx.facts:
        return Done({"note": "nothing_left"})
    return Rejected("not_found", "the integration's row is gone already, or names another instance")


async def unmark_deleting(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """The deletion was called off: back to what the row said before."""
    await connection.execute(
        f"""
        UPDATE healthcare.integrations AS row SET status = {AS_STATUS.format("old.status")},
            updated_at = now()
        FROM unnest($1::uuid[], $2::text[]) AS old (id, status)
        WHERE row.id = old.id AND row.status = 'deleting'
        """,  # noqa: S608  # constants only
        [_integration_id(c) for c in contexts],
        [c.results.get("mark", {}).get("status") or c.facts["status"] for c in contexts],
    )
    return [Done() for _ in contexts]


async def delete_integrations(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """Delete the rows; one that is gone already is as good.

    Where a create of the instance may land yet, a watch begins with this commit.
    """
    done = await _delete_rows(connection, contexts, [_integration_id(c) for c in contexts])
    if forgotten := [c.facts["instance_name"] for c in contexts if "forgotten" in c.facts]:
        # Or a create would be refused for it until upkeep looks again.
        await connection.execute(
            "DELETE FROM evosaga.sightings WHERE instance_name = ANY($1)", forgotten
        )
    return [
        replace(said, follow_up=watch(c))
        if c.results.get("mark", {}).get("may_land_late")
        else said
        for c, said in zip(contexts, done, strict=True)
    ]


async def _delete_rows(
    connection: Any, contexts: Sequence[Context], ids: Sequence[UUID]
) -> list[Done]:
    deleted = await connection.fetch(
        """
        DELETE FROM healthcare.integrations AS row
        USING unnest($1::uuid[], $2::text[]) AS mine (id, instance_name)
        WHERE row.id = mine.id AND row.config ->> 'instance_name' = mine.instance_name
        RETURNING row.id
        """,
        ids,
        [c.facts["instance_name"] for c in contexts],
    )
    gone = {row["id"] for row in deleted}
    return [Done({"deleted": id_ in gone}) for id_ in ids]


# --- looking, without touching ----------------------------------------------------------------


async def probe_saved(ctx: Context) -> Finding:
    """Whether the row that a create saves is there."""
    rows = await _rows(ctx, ctx.saga_id, ctx.input.organization_id)
    if rows is None:
        return _NO_LOOK
    name = ctx.facts["instance_name"]
    mine = next((row for row in rows if row["id"] == ctx.saga_id), None)
    if mine is not None and mine["instance_name"] == name:
        return Finding(Sighting.THERE, f"its row is there ({mine['status']})")
    other = mine or next(iter(rows), None)
    if other is None:
        return Finding(Sighting.ABSENT, "its row is not there")
    return Finding(
        Sighting.FOREIGN, f"the organization's row names the instance {other['instance_name']}"
    )


async def probe_marked(ctx: Context) -> Finding:
    """Whether the row of a delete is marked. One that is gone needs no mark any more."""
    return await _probe_row(ctx, gone=Sighting.THERE, marked=Sighting.THERE, left=Sighting.ABSENT)


async def probe_deleted(ctx: Context) -> Finding:
    """Whether the row of a delete is gone."""
    return await _probe_row(ctx, gone=Sighting.THERE, marked=Sighting.ABSENT, left=Sighting.ABSENT)


async def _probe_row(ctx: Context, *, gone: Sighting, marked: Sighting, left: Sighting) -> Finding:
    rows = await _rows(ctx, _integration_id(ctx), None)
    if rows is None:
        return _NO_LOOK
    if not rows:
        return Finding(gone, "the row is gone")
    name, status = rows[0]["instance_name"], rows[0]["status"]
    if name != ctx.facts["instance_name"]:
        return Finding(Sighting.FOREIGN, f"the row names the instance {name} by now")
    return Finding(marked if status == "deleting" else left, f"the row is there ({status})")


async def _rows(ctx: Context, id_: UUID, organization_id: UUID | None) -> list[Any] | None:
    if ctx.services.pool is None:
        return None
    rows = await ctx.services.pool.fetch(
        """
        SELECT id, status, config ->> 'instance_name' AS instance_name
        FROM healthcare.integrations
        WHERE id = $1 OR (organization_id = $2 AND enabled
                          AND type = 'whatsapp' AND provider = 'evolution')
        """,
        id_,
        organization_id,
    )
    return list(rows)


_NO_LOOK: Final = Finding(Sighting.UNKNOWN, "there is no connection to Postgres to look with")


def _integration_id(ctx: Context) -> UUID:
    return UUID(ctx.facts["integration_id"])


def _config(ctx: Context) -> dict[str, Any]:
    config = {
        "instance_name": ctx.facts["instance_name"],
        "clinic_id": str(ctx.input.clinic_id),
        "name": ctx.input.name,
        "channel": ctx.input.channel,
    }
    url = ctx.input.webhook_url or (
        f"{ctx.services.public_url}/webhooks/evolution/{ctx.facts['instance_name']}"
        if ctx.services.public_url
        else None
    )
    return config | ({"webhook_url": url} if url else {}) | server_entry(ctx.facts.get("server"))
