"""``status``, ``list``, ``why`` and ``events`` over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.cli.errors import DONE
from evosaga.orchestrator.cli.remote import reading
from evosaga.orchestrator.cli.remote.session import connect
from evosaga.orchestrator.cli.show import moment, tell_page, tell_saga

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target


def status(reference: str, /, *, target: Target, out: Output) -> int:
    """Show one saga at a glance."""
    return asyncio.run(_status(target, reference, out))


async def _status(target: Target, reference: str, out: Output) -> int:
    async with connect(target) as client:
        view = reading.view_of(await client.status(reference))
        history = await reading.history_of(client, view.saga_id)
    return tell_saga(view, history, out)


def list_sagas(
    *,
    since: str | None = None,
    limit: int = 20,
    cursor: str | None = None,
    target: Target,
    out: Output,
    **filters: str | None,
) -> int:
    """Show a page of sagas, newest first."""
    at = moment(since, datetime.now(UTC)) if since else None
    return asyncio.run(_list(target, limit, cursor, filters | {"since": at}, out))


async def _list(
    target: Target, limit: int, cursor: str | None, filters: dict[str, Any], out: Output
) -> int:
    async with connect(target) as client:
        page, after = await reading.page_of(client, limit, cursor, filters)
    return tell_page(page, after, out, narrowed=any(filters.values()))


def why(reference: str, /, *, target: Target, out: Output) -> int:
    """Explain one saga."""
    return asyncio.run(_why(target, reference, out))


async def _why(target: Target, reference: str, out: Output) -> int:
    from evosaga.orchestrator.cli.why import tell
    from evosaga.orchestrator.queries.diagnosis import Diagnosis

    async with connect(target) as client:
        view = reading.view_of(await client.status(reference))
        told = await client.get(f"/sagas/{view.saga_id}/why")
    at = told.get("next_at")
    answer = Diagnosis(
        str(told["headline"]),
        tuple(map(str, told["details"])),
        datetime.fromisoformat(at) if at else None,
        told.get("cure"),
        bool(told.get("in_flight")),
    )
    return tell(view, answer, out, told.get("runbook"))


def events(reference: str, /, *, follow: bool = False, target: Target, out: Output) -> int:
    """Show the history of a saga, and with ``--follow`` the events to come."""
    return asyncio.run(_events(target, reference, follow, out))


async def _events(target: Target, reference: str, follow_on: bool, out: Output) -> int:
    from evosaga.orchestrator.cli.events import shown

    async with connect(target) as client:
        saga = await client.status(reference)
        timeout: Any = None if follow_on else 0
        await reading.follow(client, saga.saga_id, shown(out), out, timeout=timeout)
    return DONE
