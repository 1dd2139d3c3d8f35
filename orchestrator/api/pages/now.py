"""The first page: what is going on, and what needs a person first of all."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from fastapi import Request
from starlette.responses import Response

from events.database import TRANSIENT
from events.streams import Backlog
from orchestrator.api.auth import Caller
from orchestrator.api.pages import overview
from orchestrator.api.pages.access import Reader, frame, page_router, parts
from orchestrator.api.pages.overview import Minute, Server, Work
from orchestrator.api.pages.rendering import HOME, ROOT, WORDS, clock, respond
from orchestrator.api.pages.scale import duration
from orchestrator.api.parts import Parts

router: Final = page_router()

_HEIGHT: Final = 80
_LATE: Final = 1000
_ORDER: Final = ("completed", "rejected", "compensated", "failed", "compensating", "running")
"""From the bottom of a column to its top: what is still open stands out."""


@router.get(HOME)
async def now(request: Request, who: Reader) -> Response:
    """The whole page."""
    return respond("now.html", **await _content(request, who))


@router.get(f"{ROOT}/now")
async def now_again(request: Request, who: Reader) -> Response:
    """The part that is fetched again every few seconds."""
    return respond("now_live.html", **await _content(request, who))


async def _content(request: Request, who: Caller) -> dict[str, Any]:
    here = parts(request)
    work, flow, postgres, (redis, backlog) = await asyncio.gather(
        _work(here, who),
        _flow(here),
        overview.postgres(here.pool),
        overview.redis_server(here.redis),
    )
    servers = [postgres, redis, _evolution(here, work)]
    if who.organization_id is None:  # how far the whole house is behind is nobody else's business
        servers += [*_of_workers(flow), *_of_commands(backlog)]
    tallest = max([1, *(minute.total for minute in work.minutes)]) if work else 1
    return frame(request, who, "now") | {
        "work": work,
        "servers": servers,
        "columns": [_column(n, m, tallest) for n, m in enumerate(work.minutes)] if work else [],
        "tallest": tallest,
        "headline": headline(work),
        "at": work.now if work else datetime.now(UTC),
    }


async def _work(here: Parts, who: Caller) -> Work | None:
    try:
        return await overview.work(here.pool, who.organization_id)
    except (asyncpg.PostgresError, *TRANSIENT):
        return None


async def _flow(here: Parts) -> tuple[int, int] | None:
    try:
        return await overview.relay_and_workers(here.pool)
    except (asyncpg.PostgresError, *TRANSIENT):
        return None


def headline(work: Work | None) -> str:
    """The state of the house in one sentence."""
    if work is None:
        return "Postgres does not answer, so nothing moves."
    active = work.running + work.compensating
    moving = (
        f"{active} {'saga' if active == 1 else 'sagas'} under way" if active else "nothing moves"
    )
    if work.failed:
        verb = "saga needs" if work.failed == 1 else "sagas need"
        return f"{work.failed} {verb} a person; {moving}."
    if work.held:
        return f"{moving.capitalize()}, {work.held} of them held."
    return f"All is calm: {moving}." if active else "All is calm, and nothing moves."


def _evolution(here: Parts, work: Work | None) -> Server:
    """As this process's breaker knows it; and what the sagas of all workers wait for."""
    known = here.world.evolution.state
    if known.state != "closed":
        said = f"its breaker is {known.state}: {known.reason}"
        cure = f"Sagas are held; the next call in {duration(known.retry_in or 0)}."
        return Server("Evolution", "bad", said, cure)
    held = [h for h in work.holdings if h.code.startswith("evolution")] if work else []
    if held:
        return Server(
            "Evolution", "warn", held[0].message, "Sagas wait for it, and go on by themselves."
        )
    return Server("Evolution", "ok", "calls are let through")


def _of_workers(flow: tuple[int, int] | None) -> list[Server]:
    if flow is None:
        return []
    workers, unrelayed = flow
    alive = f"{workers} alive"
    found = [
        Server("Workers", "ok", alive)
        if workers
        else Server("Workers", "bad", "none alive, so commands wait", "Start one: evosaga worker")
    ]
    late = unrelayed > _LATE or (unrelayed > 0 and not workers)
    said = f"{unrelayed} events not yet on the stream" if unrelayed else "every event is out"
    return [*found, Server("Relay", "warn" if late else "ok", said)]


def _of_commands(backlog: Backlog | None) -> list[Server]:
    if backlog is None:
        return []
    unread = "unknown" if backlog.lag is None else backlog.lag
    late = (backlog.lag or 0) + backlog.pending > _LATE
    said = f"{unread} unread, {backlog.pending} being accepted"
    found = [Server("Commands", "warn" if late else "ok", said)]
    if backlog.dead:
        letters = "letter" if backlog.dead == 1 else "letters"
        cure = "See why: redis-cli XREVRANGE evosaga:commands:dead + - COUNT 10"
        return [*found, Server("Dead letters", "warn", f"{backlog.dead} dead {letters}", cure)]
    return [*found, Server("Dead letters", "ok", "none")]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a column, in pixels from the top."""

    status: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One minute of the picture; ``x`` is in percent."""

    x: float
    said: str
    parts: Sequence[Part]


def _column(number: int, minute: Minute, tallest: int) -> Column:
    parts, top = [], float(_HEIGHT + 3)
    for status in _ORDER:
        count = minute.counts.get(status, 0)
        if count:
            height = max(1.5, round(_HEIGHT * count / tallest, 1))
            top = round(top - height, 1)
            parts.append(Part(status, top, height))
    counts = ", ".join(f"{minute.counts[s]} {WORDS[s]}" for s in _ORDER if s in minute.counts)
    said = f"{clock(minute.at)[:-3]}: {counts or 'none'}"
    return Column(round(number * 100 / 60, 3), said, parts)
