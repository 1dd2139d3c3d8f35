"""The home page: current activity, with the problems that need a person first."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from fastapi import Request
from starlette.responses import Response

from evosaga.events.database import TRANSIENT
from evosaga.events.streams import Backlog
from evosaga.orchestrator.api.auth import Caller
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages import home_queries
from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts
from evosaga.orchestrator.api.pages.home_queries import Activity, Holding, Minute, Server
from evosaga.orchestrator.api.pages.rendering import HOME, ROOT, WORDS, clock, respond
from evosaga.orchestrator.api.pages.time_axis import duration
from evosaga.orchestrator.queries.attention import LATE, Problem
from evosaga.orchestrator.whatsapp.attention import Situation, problems
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

router: Final = page_router()

_HEIGHT: Final = 80
_WORDS: Final = 4
"""The most problems named in a headline."""
_THROUGH: Final = "calls are let through"
_ORDER: Final = ("completed", "rejected", "compensated", "failed", "compensating", "running")
"""From the bottom of a column to its top: open sagas are on top."""


@router.get(HOME)
async def now(request: Request, who: Reader) -> Response:
    """The whole page."""
    return respond("now.html", **await _content(request, who))


@router.get(f"{ROOT}/now")
async def now_again(request: Request, who: Reader) -> Response:
    """The fragment that the page polls every few seconds."""
    return respond("now_live.html", **await _content(request, who))


async def _content(request: Request, who: Caller) -> dict[str, Any]:
    here = parts(request)
    work, now_, postgres, (redis, backlog) = await asyncio.gather(
        _work(here, who),
        _present(here, who),
        home_queries.postgres(here.pool),
        home_queries.redis_server(here.redis),
    )
    servers = [postgres, redis, *_evolution(here, work, now_)]
    house = who.organization_id is None
    if house:  # the backlog of the whole system is for operators only
        servers += [*_of_workers(now_), *_of_commands(backlog)]
    found = problems(now_, backlog if house else None) if now_ else []
    tallest = max([1, *(minute.total for minute in work.minutes)]) if work else 1
    return frame(request, who, "now") | {
        "work": work,
        "servers": servers,
        "columns": [_column(n, m, tallest) for n, m in enumerate(work.minutes)] if work else [],
        "tallest": tallest,
        "headline": headline(work, servers, found),
        # Parked sagas are listed one by one.
        "wrong": [one for one in found if one.code != "parked"],
        "at": work.now if work else datetime.now(UTC),
    }


async def _work(here: AppContext, who: Caller) -> Activity | None:
    background = {saga.name for saga in here.registry.versions.values() if saga.background}
    try:
        return await home_queries.activity(here.pool, who.organization_id, sorted(background))
    except (asyncpg.PostgresError, *TRANSIENT):
        return None


async def _present(here: AppContext, who: Caller) -> Situation | None:
    try:
        return await here.situation(who.organization_id)
    except (asyncpg.PostgresError, *TRANSIENT):
        return None


def headline(
    work: Activity | None, servers: Sequence[Server], found: Sequence[Problem] = ()
) -> str:
    """The system's state in one sentence; calm only when nothing needs attention."""
    if work is None:
        return "Postgres does not answer, so nothing moves."
    active = work.running + work.compensating
    moving = (
        f"{active} {'saga' if active == 1 else 'sagas'} under way" if active else "nothing moves"
    )
    counts = ((work.held, "held"), (work.retrying, "trying again"), (work.overdue, "overdue"))
    restless = ", ".join(f"{count} {word}" for count, word in counts if count)
    said = f"{moving}: {restless}" if restless else moving
    wrongs = [one.brief for one in found if one.code != "overdue"]
    if work.failed and not any(one.code == "parked" for one in found):
        verb = "saga needs" if work.failed == 1 else "sagas need"
        wrongs.insert(0, f"{work.failed} {verb} a person")
    # Problems of workers are in `found`.
    trouble = [s.name for s in servers if s.verdict == "bad" and s.name != "Workers"]
    if trouble:
        wrongs.insert(0, f"trouble with {' and '.join(trouble)}")
    if wrongs:
        more = len(wrongs) - _WORDS
        told = ", ".join(wrongs[:_WORDS]) + (f", and {more} more" if more > 0 else "")
        return f"{told[0].upper()}{told[1:]}; {said}."
    if restless:
        return f"{said.capitalize()}."
    return f"All is calm: {moving}." if active else "All is calm, and nothing moves."


def _evolution(here: AppContext, work: Activity | None, now: Situation | None) -> list[Server]:
    """The Evolution servers as this process's breakers know them, and what all sagas wait for."""
    calm = "not called, since no worker is alive" if now and now.workers == 0 else _THROUGH
    held = {h.server: h for h in reversed(work.holdings) if h.server} if work else {}
    names = [*here.services.servers, *sorted(held.keys() - here.services.servers.keys())]
    return [_one_evolution(here, name, held.get(name), calm) for name in names]


def _one_evolution(here: AppContext, server: str, held: Holding | None, calm: str) -> Server:
    name = "Evolution" if server == DEFAULT_SERVER else f"Evolution {server}"
    if server not in here.services.servers:
        cure = "Put it back into EVOSAGA_EVOLUTION_SERVERS: its sagas are held until then."
        return Server(name, "bad", "it is not configured here", cure)
    known = here.services.servers[server].state
    if known.state != "closed":
        said = f"its breaker is {known.state}: {known.reason}"
        cure = f"Sagas are held; the next call in {duration(known.retry_in or 0)}."
        return Server(name, "bad", said, cure)
    if held:
        return Server(name, "warn", held.message, "Sagas wait for it, and go on by themselves.")
    return Server(name, "ok", calm)


def _of_workers(now: Situation | None) -> list[Server]:
    if now is None or now.workers is None or now.unrelayed is None:
        return []
    workers, unrelayed = now.workers, now.unrelayed
    alive = f"{workers} alive"
    found = [
        Server("Workers", "ok", alive)
        if workers
        else Server("Workers", "bad", "none alive, so commands wait", "Start one: evosaga worker")
    ]
    late = unrelayed > LATE or (unrelayed > 0 and not workers)
    said = f"{unrelayed} events not yet on the stream" if unrelayed else "every event is out"
    return [*found, Server("Relay", "warn" if late else "ok", said)]


def _of_commands(backlog: Backlog | None) -> list[Server]:
    if backlog is None:
        return []
    unread = "unknown" if backlog.lag is None else backlog.lag
    late = (backlog.lag or 0) + backlog.pending > LATE
    said = f"{unread} unread, {backlog.pending} being accepted"
    found = [Server("Commands", "warn" if late else "ok", said)]
    if backlog.dead:
        letters = "letter" if backlog.dead == 1 else "letters"
        cure = "See why: evosaga letters"
        return [*found, Server("Dead letters", "warn", f"{backlog.dead} dead {letters}", cure)]
    return [*found, Server("Dead letters", "ok", "none")]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a column, in pixels from the top."""

    status: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One minute of the chart; ``x`` is in percent."""

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
