"""The verbs that only read: status, list, events. Postgres is all they need."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from evosaga.orchestrator.cli import connections
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.events.model import Recorded
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.queries.sagas import SagaView


def status(arguments: argparse.Namespace, out: Output) -> int:
    """One saga at a glance."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_status(settings, arguments.reference, out))


def list_sagas(arguments: argparse.Namespace, out: Output) -> int:
    """A page of sagas, newest first."""
    since = moment(arguments.since, datetime.now(UTC)) if arguments.since else None
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_list(settings, arguments, since, out))


def events(arguments: argparse.Namespace, out: Output) -> int:
    """The history of a saga, and with ``--follow`` what comes."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_events(settings, arguments, out))


async def find(pool: Pool, reference: str) -> SagaView:
    """The saga that is meant, or trouble."""
    from evosaga.orchestrator.queries.sagas import find_saga

    view = await find_saga(pool, reference)
    if view is None:
        said = f"no saga, command or instance is called {reference!r}: see `evosaga list`"
        raise CliError(WRONG, said)
    return view


def document(view: SagaView) -> dict[str, Any]:
    """A saga for programs; ids and times as text."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in (asdict(view) | {"over": view.over}).items()
        if name not in ("held_claim", "scheduled_at")
    }


def moment(text: str, now: datetime, option: str = "--since") -> datetime:
    """A time as people write it (``evosaga.orchestrator.timeparse``). Raises ``CliError``."""
    from evosaga.orchestrator import timeparse

    try:
        return timeparse.moment(text, now)
    except ValueError as error:
        raise CliError(WRONG, f"{option} {error}") from None


async def _status(settings: Settings, reference: str, out: Output) -> int:
    from evosaga.orchestrator.engine.repeated_holds import with_hold
    from evosaga.orchestrator.queries.sagas import history
    from evosaga.orchestrator.queries.timeline import steps_of
    from evosaga.orchestrator.whatsapp.explain import note

    async with connections.postgres(settings) as pool:
        view = await find(pool, reference)
        told = await history(pool, view.saga_id)
    steps = steps_of(with_hold(view, told), note=note)
    if out.json:
        out.data(document(view) | {"steps": [step.as_dict() for step in steps]})
        return DONE
    _headline(view, any(step.state in ("running", "undoing") for step in steps), out)
    if out.terminal:
        from evosaga.orchestrator.cli.render import steps_table

        out.console.print(steps_table(steps))
        if view.status in ("running", "compensating", "failed"):
            out.note(f"more: evosaga why {view.saga_id}")
    else:
        for step in steps:
            spent = f"{step.seconds:.2f} s" if step.seconds is not None else ""
            out.line(f"  {step.name:<12}{step.state:<12}{spent:>8}  {step.note}".rstrip())
    return DONE


def _headline(view: SagaView, in_flight: bool, out: Output) -> None:
    due = "answers by" if in_flight else "next try"
    facts = {
        "saga": f"{view.saga} v{view.version}",
        "status": view.status,
        "saga id": view.saga_id,
        "command id": view.command_id if view.command_id != str(view.saga_id) else None,
        "instance": view.instance_name,
        "organization": view.organization_id,
        "began": clock(view.created_at),
        "changed": clock(view.updated_at),
        "why": f"{view.message} ({view.code})" if view.message else None,
        "existing": view.existing_instance,
        due: clock(view.next_at) if view.next_at and not view.over else None,
        "worker": view.owner,
    }
    known = {name: str(value) for name, value in facts.items() if value is not None}
    if not out.terminal:
        for name, value in known.items():
            out.line(f"{name + ':':<14}{value}")
        return
    from evosaga.orchestrator.cli.render import facts_table

    out.console.print(facts_table(known))


async def _list(
    settings: Settings, arguments: argparse.Namespace, since: datetime | None, out: Output
) -> int:
    from evosaga.orchestrator.queries import sagas

    organization = arguments.organization_id
    wanted = sagas.Filter(
        status=arguments.status,
        saga=arguments.saga,
        organization_id=UUID(organization) if organization else None,
        instance_name=arguments.instance_name,
        since=since,
        code=arguments.code,
    )
    async with connections.postgres(settings) as pool:
        try:
            page, cursor = await sagas.list_sagas(
                pool, wanted, limit=arguments.limit, cursor=arguments.cursor
            )
        except sagas.BadCursor as error:
            raise CliError(WRONG, str(error)) from None
    if out.json:
        out.data({"sagas": [document(view) for view in page], "cursor": cursor})
        return DONE
    if not page and wanted == sagas.Filter():
        out.note("there is no saga yet; `evosaga create --help` shows how to start one")
        return DONE
    _draw_list(page, out)
    if cursor:
        out.note(f"there are more: --cursor {cursor}")
    return DONE


def _draw_list(page: Sequence[SagaView], out: Output) -> None:
    if not page:
        out.note("no saga fits; `evosaga create --help` shows how to start one")
        return
    rows = [_row(view) for view in page]
    heading = {name: name.upper() for name in rows[0]}
    widths = {name: max(len(row[name]) for row in (heading, *rows)) for name in heading}
    if not out.terminal:
        for row in (heading, *rows):
            out.line("  ".join(f"{row[name]:<{widths[name]}}" for name in widths).rstrip())
        return
    from rich.text import Text

    from evosaga.orchestrator.cli.render import COLOURS

    shown = _that_fit(widths, out.console.width)
    for row in (heading, *rows):
        line = Text("  ").join(
            Text(
                f"{row[name]:<{widths[name]}}",
                COLOURS.get(row[name], "") if name == "status" else "",
            )
            for name in shown
        )
        line.rstrip()
        line.truncate(out.console.width, overflow="ellipsis")
        if row is heading:
            line.stylize("dim")
        out.console.print(line, no_wrap=True)


def _that_fit(widths: dict[str, int], window: int) -> list[str]:
    """The columns to show: an id that is cut is of no use, the end of a reason may go."""
    shown = {"began", "status", "saga id", "why"}
    for name in ("saga", "instance"):
        wanted = shown | {name}
        ids = sum(widths[one] + 2 for one in wanted - {"why"})
        if ids + min(widths["why"], 30) <= window:
            shown = wanted
    return [name for name in widths if name in shown]


def _row(view: SagaView) -> dict[str, str]:
    return {
        "began": clock(view.created_at),
        "status": view.status,
        "saga": view.saga,
        "saga id": str(view.saga_id),
        "instance": view.instance_name or "",
        "why": _reason(view),
    }


def _reason(view: SagaView) -> str:
    if view.message:
        return f"{view.code}: {view.message}"
    return f"at {view.step}" if view.step and not view.over else ""


def clock(at: datetime) -> str:
    """A time for people, in their zone."""
    return at.astimezone().strftime("%b %d %H:%M:%S")


async def _events(settings: Settings, arguments: argparse.Namespace, out: Output) -> int:
    from evosaga.orchestrator.cli.follow import Seen, follow
    from evosaga.orchestrator.cli.render import draw_event
    from evosaga.orchestrator.queries.timeline import event_line
    from evosaga.orchestrator.whatsapp.explain import note

    def tell(seen: Seen, fresh: Sequence[Recorded]) -> None:
        for recorded in fresh:
            if out.json:
                assert seen.view is not None
                out.written(cloud_event(seen.view, recorded))
            elif out.terminal:
                draw_event(recorded, out)
            else:
                out.line(event_line(recorded, note))

    async with connections.postgres(settings) as pool:
        view = await find(pool, arguments.reference)
        await follow(pool, view.saga_id, tell, timeout=None if arguments.follow else 0)
    return DONE


def cloud_event(view: SagaView, recorded: Recorded) -> str:
    """An event exactly as the stream ``evosaga:events`` has it."""
    from evosaga.events import cloudevents

    row: Any = {
        "saga": view.saga,
        "version": view.version,
        "organization_id": view.organization_id,
    }
    return cloudevents.cloud_event(row, recorded).decode()
