"""Effects of repairs: a row that differs from what there is, or a routing key.

The rows' effects join the commit of their event and are set-based, as all of Postgres's.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from evosaga.sagas.outcome import Done, FollowUp, Outcome, Rejected
from evosaga.sagas.whatsapp import integration_events
from evosaga.sagas.whatsapp.integration_events import Notice
from evosaga.sagas.whatsapp.ownership import stored
from evosaga.sagas.whatsapp.row_status import after_repair, health_after_repair
from evosaga.sagas.whatsapp.services import Context
from evosaga.sagas.whatsapp.steps import notify_workers, routing_key
from evosaga.sagas.whatsapp.steps.integration_row import AS_STATUS
from evosaga.sagas.whatsapp.types import server_entry


async def correct_rows(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """Let the rows say what was seen, unless they have changed meanwhile."""
    changed = await connection.fetch(
        f"""
        UPDATE healthcare.integrations AS row SET status = {AS_STATUS.format("new.status")},
            updated_at = now(), whatsapp_number = coalesce(new.number, row.whatsapp_number)
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
            AS new (id, before, status, number)
        WHERE row.id = new.id AND coalesce(row.status::text, 'pending') = new.before
        RETURNING row.id
        """,  # noqa: S608  # constants only
        [UUID(c.facts["integration_id"]) for c in contexts],
        [c.facts["status"] for c in contexts],
        [after_repair(c.input.seen) for c in contexts],
        [c.input.whatsapp_number for c in contexts],
    )
    ids = {str(row["id"]) for row in changed}
    return await _noted(connection, contexts, ids)


async def adopt_rows(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
    """Let the rows name the instances, or make the rows again that the log remembers."""
    again = [c for c in contexts if "config" in c.facts]
    named = [c for c in contexts if "config" not in c.facts]
    made = await connection.fetch(
        f"""
        INSERT INTO healthcare.integrations (id, organization_id, type, provider, status, enabled,
            config, webhook_token, whatsapp_number, created_at, updated_at)
        SELECT id, organization_id, 'whatsapp', 'evolution', {AS_STATUS.format("status")}, true,
            config::jsonb, token, number, now(), now()
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
            AS new (id, organization_id, status, config, token, number)
        ORDER BY organization_id ON CONFLICT DO NOTHING RETURNING id
        """,  # noqa: S608
        [UUID(c.facts["integration_id"]) for c in again],
        [c.input.organization_id for c in again],
        [after_repair(c.input.seen) for c in again],
        [json.dumps(c.facts["config"], ensure_ascii=False) for c in again],
        [
            stored(
                c.services.keys.webhook_token(UUID(c.facts["integration_id"]), c.facts["key_id"])
            )
            for c in again
        ],
        [c.input.whatsapp_number for c in again],
    )
    told = await connection.fetch(
        f"""
        UPDATE healthcare.integrations AS row SET status = {AS_STATUS.format("new.status")},
            updated_at = now(), whatsapp_number = new.number,
            config = (row.config - 'server') || new.named::jsonb
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
            AS new (id, before, named, status, number)
        WHERE row.id = new.id AND row.config ->> 'instance_name' = new.before
          AND coalesce(row.status::text, 'pending') <> 'deleting' RETURNING row.id
        """,  # noqa: S608
        [UUID(c.facts["integration_id"]) for c in named],
        [c.facts["before"] for c in named],
        [json.dumps(_named(c)) for c in named],
        [after_repair(c.input.seen) for c in named],
        [c.input.whatsapp_number for c in named],
    )
    return await _noted(connection, contexts, {str(row["id"]) for row in (*made, *told)})


async def announce_adopted(ctx: Context) -> Outcome:
    """Tell the routing workers, and give the command that makes the instance whole.

    With the last step, not with the row: its saga holds the instance's name until this one is
    over, and a command that comes before that is refused.
    """
    return _with_completion(await notify_workers.announce_adopted(ctx), ctx)


def _with_completion(said: Outcome, ctx: Context) -> Outcome:
    """Where the row of one of ours is made again, its webhook and settings are looked at, too."""
    if not isinstance(said, Done) or "config" not in ctx.facts:
        return said
    about = {name: ctx.facts[name] for name in ("integration_id", "instance_name")}
    return replace(said, follow_up=FollowUp("instance.complete", about))


async def _noted(connection: Any, contexts: Sequence[Context], ids: set[str]) -> list[Outcome]:
    """Note what was seen beside the row, for the health check and for the next look."""
    done = [c for c in contexts if c.facts["integration_id"] in ids]
    await connection.execute(
        """
        INSERT INTO evosaga.connections AS known (integration_id, state, connected_at)
        SELECT id, state, CASE WHEN state = 'connected' THEN now() END
        FROM unnest($1::uuid[], $2::text[]) AS new (id, state) ORDER BY id
        ON CONFLICT (integration_id) DO UPDATE SET state = excluded.state, checked_at = now(),
            since = CASE WHEN known.state = excluded.state THEN known.since ELSE now() END,
            connected_at = coalesce(excluded.connected_at, known.connected_at)
        """,
        [UUID(c.facts["integration_id"]) for c in done],
        [health_after_repair(c.input.seen) for c in done],
    )
    await _tell(connection, done)
    return [
        Done({"status": after_repair(c.input.seen), "seen": c.input.seen})
        if c.facts["integration_id"] in ids
        else Rejected("changed_meanwhile", "the row was changed since it was looked at")
        for c in contexts
    ]


async def _tell(connection: Any, contexts: Sequence[Context]) -> None:
    """The notice that follows every change of a row's status."""
    news = [c for c in contexts if c.facts.get("status") != after_repair(c.input.seen)]
    notices = [
        Notice(
            UUID(c.facts["integration_id"]),
            UUID(c.facts["organization_id"]),
            c.facts["instance_name"],
            f"integration.{after_repair(c.input.seen)}",
            {
                "status": after_repair(c.input.seen),
                "state": health_after_repair(c.input.seen),
                "before": c.facts.get("status"),
            },
        )
        for c in news
    ]
    await integration_events.record(connection, notices)


async def drop_key(ctx: Context) -> Outcome:
    """Drop the routing key; the next reader fills it again, from the row as it is now."""
    names = {ctx.facts["instance_name"], ctx.facts.get("before", ctx.facts["instance_name"])}
    redis = ctx.services.redis
    try:
        for name in names:
            await redis.delete(routing_key.key(name), routing_key.filled_key(name, redis))
    except RedisError as error:
        return routing_key.trouble(error)
    return Done()


def _named(ctx: Context) -> dict[str, str]:
    """What a row says of which instance it means."""
    name = {"instance_name": str(ctx.facts["instance_name"])}
    return name | server_entry(ctx.facts.get("server"))
