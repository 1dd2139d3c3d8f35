"""The verbs ``events``, which shows the history of a saga, and ``events republish``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from cyclopts import App

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.help_page import verb_options
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.show import find, moment
from evosaga.orchestrator.cli.verb_table import DATABASE, REDIS

if TYPE_CHECKING:
    from evosaga.events.model import Recorded
    from evosaga.orchestrator.cli.follow import Seen, Watch
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.queries.sagas import SagaView

app = App(
    name="events",
    usage="evosaga events [--follow] ID, or evosaga events republish --since WHEN",
    **verb_options("events 0197a0de-0000-7000-8000-000000000003 --follow", [DATABASE]),
)


@app.default
def events(
    reference: params.Reference,
    /,
    *,
    follow: params.Follow = False,
    out: params.Out,
) -> int:
    """Show the history of a saga, and with ``--follow`` the events to come.

    Args:
        follow: go on until the saga is over
    """
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_events(settings, reference, follow, out))


def republish(
    *,
    since: params.When,
    until: params.When | None = None,
    out: params.Out,
) -> int:
    """Publish events to the stream again.

    Args:
        since: from when on: 2025-12-05T12:00Z, or ago: 30m, 1h, 2d
        until: up to then; without it, up to now
    """
    now = datetime.now(UTC)
    first = moment(since, now)
    end = moment(until, now, "--until") if until else None
    if end is not None and end <= first:
        raise CliError(WRONG, "--until must be later than --since")
    with connections.servers(out) as settings:
        return asyncio.run(_republish(settings, first, end, out))


app.command(
    republish,
    help="Tell events on evosaga:events once more, from Postgres, in order, with the same ids.\n\n"
    "After a Redis lost its data the workers publish again by themselves; this is for a consumer "
    "that lost what it had read. Consumers deduplicate by id.",
    **verb_options("events republish --since 2h", [DATABASE, REDIS]),
)


async def _events(settings: Settings, reference: str, follow_on: bool, out: Output) -> int:
    from evosaga.orchestrator.cli.follow import follow

    async with connections.postgres(settings) as pool:
        view = await find(pool, reference, or_else=_perhaps(reference))
        await follow(pool, view.saga_id, shown(out), timeout=None if follow_on else 0)
    return DONE


def shown(out: Output) -> Watch:
    """Shows each event that is new."""
    from evosaga.orchestrator.cli.render import draw_event
    from evosaga.orchestrator.queries.timeline import event_line
    from evosaga.orchestrator.whatsapp.explain import note

    def show(seen: Seen, fresh: Sequence[Recorded]) -> None:
        for recorded in fresh:
            if out.json:
                assert seen.view is not None
                out.written(cloud_event(seen.view, recorded))
            elif out.terminal:
                draw_event(recorded, out)
            else:
                out.line(event_line(recorded, note))

    return show


def _perhaps(reference: str) -> str:
    """What may have been meant by a word that is no saga's."""
    meant = get_close_matches(reference, ["republish"], 1, 0.7)
    return "did you mean `evosaga events republish`?" if meant else ""


def cloud_event(view: SagaView, recorded: Recorded) -> str:
    """An event exactly as the stream ``evosaga:events`` has it."""
    from evosaga.events import cloudevents

    row: Any = {
        "saga": view.saga,
        "version": view.version,
        "organization_id": view.organization_id,
    }
    return cloudevents.cloud_event(row, recorded).decode()


async def _republish(
    settings: Settings, since: datetime, until: datetime | None, out: Output
) -> int:
    from evosaga.events.republish import republish_between, republish_from
    from evosaga.orchestrator.cli.render import progress_bar
    from evosaga.orchestrator.worker import worker_name
    from evosaga.sagas.whatsapp import integration_events

    async with (
        connections.postgres(settings) as pool,
        connections.own_redis(settings, pool) as redis,
    ):
        began = time.monotonic()
        with progress_bar("publishing", out) as progress:
            if until is None:
                count = await republish_from(
                    pool, redis, worker_name(), since, progress, integration_events.tell_again
                )
            else:
                count = await republish_between(
                    pool, redis, since, until, progress, integration_events.tell_again
                )
    seconds = time.monotonic() - began
    if out.json:
        out.data({"events": count, "seconds": round(seconds, 3)})
    else:
        out.line(f"told {count} events again on evosaga:events in {seconds:.1f} s")
    return DONE
