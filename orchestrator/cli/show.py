"""The verbs ``status`` and ``list``, which need nothing but Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output, printable

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.events.model import Recorded
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.queries.sagas import Filter, SagaView


_WIDE: Final = 56
"""Columns of a window that has room for names and ids beside each other."""


def status(reference: params.Reference, /, *, out: params.Out) -> int:
    """Show one saga at a glance."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_status(settings, reference, out))


def list_sagas(
    *,
    status: params.Status | None = None,
    saga: params.Name | None = None,
    organization_id: params.Uuid | None = None,
    instance_name: params.Name | None = None,
    code: params.Text | None = None,
    since: params.When | None = None,
    limit: params.Page = 20,
    cursor: params.Text | None = None,
    out: params.Out,
) -> int:
    """Show a page of sagas, newest first.

    Args:
        status: only these
        saga: such as create-integration
        organization_id: only its sagas
        instance_name: only its sagas
        code: only those that stopped for this reason
        since: 2025-12-05T12:00Z, or ago: 30m, 1h, 2d
        cursor: where the page before ended
    """
    from evosaga.orchestrator.queries.sagas import Filter

    wanted = Filter(
        status=status,
        saga=saga,
        organization_id=UUID(organization_id) if organization_id else None,
        instance_name=instance_name,
        since=moment(since, datetime.now(UTC)) if since else None,
        code=code,
    )
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_list(settings, wanted, limit, cursor, out))


async def find(pool: Pool, reference: str, *, or_else: str = "") -> SagaView:
    """The saga that is meant, or trouble, with ``or_else`` for its cure."""
    from evosaga.orchestrator.queries.sagas import find_saga

    view = await find_saga(pool, reference)
    if view is None:
        said = f"no saga, command or instance is called {reference!r}"
        raise CliError(WRONG, f"{said}: {or_else or 'see `evosaga list`'}")
    return view


def document(view: SagaView) -> dict[str, Any]:
    """A saga for programs; ids and times as text."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in (asdict(view) | {"over": view.over}).items()
        if name not in ("held_claim", "scheduled_at")
    }


def moment(text: str, now: datetime, option: str = "--since") -> datetime:
    """A time as people write it (``queries.timeparse``). Raises ``CliError``."""
    from evosaga.orchestrator.queries import timeparse

    try:
        return timeparse.moment(text, now)
    except ValueError as error:
        raise CliError(WRONG, f"{option} {error}") from None


async def _status(settings: Settings, reference: str, out: Output) -> int:
    from evosaga.orchestrator.queries.sagas import history

    async with connections.postgres(settings) as pool:
        view = await find(pool, reference)
        told = await history(pool, view.saga_id)
    return tell_saga(view, told, out)


def tell_saga(view: SagaView, told: Sequence[Recorded], out: Output) -> int:
    """Show a saga with its steps; the exit code."""
    from evosaga.orchestrator.engine.repeated_holds import with_hold
    from evosaga.orchestrator.queries.timeline import steps_of
    from evosaga.orchestrator.whatsapp.explain import note

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
            line = f"  {step.name:<12}{step.state:<12}{spent:>8}  {step.note}"
            out.line(printable(line.rstrip()))
    return DONE


def _headline(view: SagaView, in_flight: bool, out: Output) -> None:
    due = "answers by" if in_flight else "next try"
    facts = {
        "saga": f"{view.saga} v{view.version}",
        "status": status_of(view),
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
            out.line(printable(f"{name + ':':<14}{value}"))
        return
    from evosaga.orchestrator.cli.render import COLOURS, facts_table

    if out.console.width < _WIDE:
        for name, value in known.items():
            out.fact(name, value, COLOURS.get(value, "") if name == "status" else "")
        return
    out.console.print(facts_table(known))


async def _list(
    settings: Settings, wanted: Filter, limit: int, cursor: str | None, out: Output
) -> int:
    from evosaga.orchestrator.queries import sagas

    async with connections.postgres(settings) as pool:
        try:
            page, cursor = await sagas.list_sagas(pool, wanted, limit=limit, cursor=cursor)
        except sagas.BadCursor as error:
            raise CliError(WRONG, str(error)) from None
    return tell_page(page, cursor, out, narrowed=wanted != sagas.Filter())


def tell_page(page: Sequence[SagaView], cursor: str | None, out: Output, *, narrowed: bool) -> int:
    """Show a page of sagas; the exit code. ``narrowed``: there may be others."""
    if out.json:
        out.data({"sagas": [document(view) for view in page], "cursor": cursor})
        return DONE
    if not page and not narrowed:
        out.note("there is no saga yet; `evosaga create --help` shows how to start one")
        return DONE
    _draw_list(page, out)
    if cursor:
        out.note(f"there are more: --cursor {cursor}")
    return DONE


def _draw_list(page: Sequence[SagaView], out: Output) -> None:
    from evosaga.orchestrator.cli.render import COLOURS

    if not page:
        out.note("no saga fits; `evosaga create --help` shows how to start one")
        return
    out.table([_row(view) for view in page], spare=("saga", "instance"), styles=COLOURS)


def _row(view: SagaView) -> dict[str, str]:
    return {
        "began": clock(view.created_at),
        "status": status_of(view),
        "saga": view.saga,
        "saga id": str(view.saga_id),
        "instance": view.instance_name or "",
        "why": _reason(view),
    }


def status_of(view: SagaView) -> str:
    """The status for people, who see that a saga only waits for a dependency."""
    return f"{view.status}, held" if view.held else view.status


def _reason(view: SagaView) -> str:
    if view.message:
        return f"{view.code}: {view.message}"
    return f"at {view.step}" if view.step and not view.over else ""


def clock(at: datetime) -> str:
    """A time for people, in their zone, which is told: ``--since`` reads it as it is printed."""
    told = at.astimezone().isoformat(sep=" ", timespec="seconds")
    return told.removesuffix("+00:00") + ("Z" if told.endswith("+00:00") else "")
