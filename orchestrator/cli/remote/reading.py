"""Answers of a server as the values that verbs draw: views of sagas and recorded events."""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from pydantic import ValidationError

from evosaga.events.model import KINDS, Recorded, event_from
from evosaga.orchestrator.cli.errors import WRONG, CliError
from evosaga.orchestrator.cli.follow import Seen, Watch
from evosaga.orchestrator.client import Client, Event, NotFound, Saga
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.sagas import whatsapp  # noqa: F401  # so old histories are read in today's words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evosaga.orchestrator.cli.output import Output

_POLL: Final = 0.2
_NO_WORKER_AFTER: Final = 3.0
_PAGE: Final = 100
_EVENTS: Final = {kind.model_fields["type"].default: kind for kind in KINDS}
_PRIVATE: Final[dict[str, Any]] = {"input": {}}
"""What servers keep to themselves, and an event can't be without."""


def view_of(saga: Saga) -> SagaView:
    """The saga as verbs draw it."""
    told = {
        one.name: getattr(saga, one.name) for one in fields(SagaView) if hasattr(saga, one.name)
    }
    return SagaView(**told)


def recorded_of(saga_id: UUID, event: Event) -> Recorded:
    """The event with its place in the log. Raises ``CliError`` for one of a newer release."""
    known = _EVENTS.get(event.type)
    data: dict[str, Any] = dict(event.data)
    if known is not None:
        names = known.model_fields
        for name in ("saga", "version", "organization_id"):
            if name not in names:
                data.pop(name, None)
        data |= {name: value for name, value in _PRIVATE.items() if name in names - data.keys()}
    try:
        return Recorded(
            saga_id=saga_id,
            sequence=event.sequence,
            recorded_at=event.time,
            correlation_id=event.correlation_id or str(saga_id),
            causation_id=event.causation_id,
            event=event_from(event.type, data),
        )
    except ValidationError:
        said = f"the server has an event that this evosaga does not know ({event.type})"
        raise CliError(WRONG, f"{said}: update evosaga on this machine") from None


async def history_of(client: Client, saga_id: UUID, after: int = -1) -> list[Recorded]:
    """The saga's events above that sequence."""
    return [recorded_of(saga_id, one) for one in await client.events(saga_id, after=after)]


async def page_of(
    client: Client, limit: int, cursor: str | None, filters: dict[str, Any]
) -> tuple[list[SagaView], str | None]:
    """A page of sagas, newest first, and the cursor of the next one."""
    wanted = {name: value for name, value in filters.items() if value is not None}
    found: list[SagaView] = []
    while True:
        at_once = min(_PAGE, limit - len(found))
        page = await client.list(limit=at_once, cursor=cursor, **wanted)
        found += map(view_of, page.sagas)
        cursor = page.cursor
        if cursor is None or len(found) >= limit:
            return found, cursor


async def follow(
    client: Client, saga_id: UUID, watch: Watch, out: Output, *, timeout: float | None = None
) -> Seen:
    """Watch until the saga is over, or for ``timeout`` seconds; says when no worker is there."""
    seen, began, warned = Seen(), time.monotonic(), timeout == 0
    while True:
        fresh = await _look(client, saga_id, seen)
        if fresh:
            watch(seen, fresh)
        spent = time.monotonic() - began
        if seen.over or (timeout is not None and spent >= timeout):
            return seen
        if not warned and spent > _NO_WORKER_AFTER:
            warned = True
            await _warn_without_worker(client, out)
        await asyncio.sleep(_POLL)


async def _look(client: Client, saga_id: UUID, seen: Seen) -> Sequence[Recorded]:
    try:
        view = view_of(await client.status(saga_id))
    except NotFound:
        return ()  # an older server answers before the saga can be read
    last = seen.history[-1].sequence if seen.history else -1
    fresh = await history_of(client, saga_id, last) if view.sequence > last + 1 else []
    seen.view = view
    seen.history += fresh
    return fresh


async def _warn_without_worker(client: Client, out: Output) -> None:
    """What the server's readiness says of workers; a server that is not ready says it itself."""
    from evosaga.orchestrator.client import EvosagaError

    try:
        checks = (await client.get("/readyz"))["checks"]
    except (EvosagaError, KeyError):
        return
    if not checks.get("workers", {"ok": True})["ok"]:
        out.note(
            "evosaga: no worker is running there, so nothing happens until one is started. The "
            "command is kept."
        )
