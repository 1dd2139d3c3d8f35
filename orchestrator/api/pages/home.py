"""The home page: what needs attention first, then current activity and its charts."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from fastapi import Request
from starlette.responses import Response

from evosaga.events.database import TRANSIENT
from evosaga.events.streams import Backlog
from evosaga.orchestrator.api.auth import Caller
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages import home_queries
from evosaga.orchestrator.api.pages.charts import PERIODS, Charts, charts
from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts
from evosaga.orchestrator.api.pages.home_queries import Activity, Holding, Server
from evosaga.orchestrator.api.pages.rendering import HOME, ROOT, respond
from evosaga.orchestrator.api.pages.time_axis import duration
from evosaga.orchestrator.api.reads import reads_of
from evosaga.orchestrator.maintenance.alerts.view import firing
from evosaga.orchestrator.queries.attention import LATE, Problem, counted
from evosaga.orchestrator.whatsapp.attention import Situation, problems
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

router: Final = page_router()

_WORDS: Final = 4
"""The most problems named in a headline."""
_THROUGH: Final = "calls are let through"
_LONG: Final = 60.0
"""Seconds after which an open breaker needs attention: until then it may close by itself."""
_PLACES: Final = {
    "dead_letters": (f"{ROOT}/letters", "Dead letters"),
    "drift": (f"{ROOT}/upkeep#h-drift", "Drift"),
    "repairs": (f"{ROOT}/upkeep#h-drift", "Drift"),
    "phones": (f"{ROOT}/integrations?attention=1", "These integrations"),
    "workers": (f"{ROOT}/workers", "Workers"),
    "overdue": (f"{ROOT}/workers", "Workers"),
    "chores": (f"{ROOT}/upkeep#h-chores", "Background jobs"),
    "alerts": (f"{ROOT}/alerts", "Alerts"),
}
"""Where a problem is looked at: an address and its name, by code."""
_SEEN_HERE: Final = frozenset(
    {
        *("parked", "dead_letters", "workers", "overdue", "commands", "relay"),
        *("schema", "chores", "phones"),
    }
)
"""Codes of alerts whose trouble this page finds by itself."""
_MENDED_HERE: Final = ("dead_letters", "drift", "repairs")
"""Problems that a page mends, so that no verb of the terminal is named."""


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
    work, now_, postgres, (redis, backlog), alerts = await asyncio.gather(
        _work(here, who),
        _present(here, who),
        home_queries.postgres(here.pool),
        home_queries.redis_server(here.redis),
        _firing(here, who),
    )
    servers = [postgres, redis, *_evolution(here, work, now_)]
    house = who.organization_id is None
    if house:  # the backlog of the whole system is for operators only
        servers += [*_of_workers(now_), *_of_commands(backlog)]
    found = problems(now_, backlog if house else None) if now_ else []
    found += of_alerts(alerts, servers)
    chart, names = await _drawn(request, who, work)
    wrong = needs(servers, found)
    parked = work.failed if work else 0
    return frame(request, who, "now") | {
        "work": work,
        "servers": servers,
        "chart": chart,
        "periods": PERIODS,
        "headline": headline(work, servers, found),
        "wrong": wrong,
        "count": len(wrong) + parked,
        "names": names,
        "at": work.now if work else datetime.now(UTC),
    }


async def _drawn(
    request: Request, who: Caller, work: Activity | None
) -> tuple[Charts | None, dict[UUID, str]]:
    """The charts, and the names of the clinics whose sagas are parked."""
    if work is None:
        return None, {}
    here = parts(request)
    period = request.query_params.get("period", "hour")
    try:
        return (
            await charts(await reads_of(request), period, who.organization_id),
            await here.names_of([saga.saga_id for saga in work.needs]),
        )
    except (asyncpg.PostgresError, *TRANSIENT):
        return None, {}


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


async def _firing(here: AppContext, who: Caller) -> Mapping[str, int]:
    """Alerts by code; they are about the whole installation, so for operators only."""
    if who.organization_id is not None:
        return {}
    try:
        return await firing(here.pool)
    except (asyncpg.PostgresError, *TRANSIENT):
        return {}


def of_alerts(alerts: Mapping[str, int], servers: Sequence[Server]) -> list[Problem]:
    """The alerts whose trouble is not listed on this page already, as one problem. Pure."""
    bad = [one.name for one in servers if one.verdict == "bad" and one.lasting]
    listed = {"redis_away"} if "Redis" in bad else set()
    if any(name.startswith("Evolution") for name in bad):
        listed.add("breaker")
    codes = sorted(alerts.keys() - _SEEN_HERE - listed)
    if not codes:
        return []
    said = f"{counted(sum(alerts[code] for code in codes), 'alert')} firing"
    return [Problem("alerts", "alerts are firing", said, f"{said}: {', '.join(codes)}")]


def headline(
    work: Activity | None, servers: Sequence[Server], found: Sequence[Problem] = ()
) -> str:
    """The state of everything in two sentences. Pure."""
    if work is None:
        return "Postgres does not answer, so nothing goes on."
    active = work.running + work.compensating
    counts = ((work.held, "held"), (work.retrying, "retrying"), (work.overdue, "overdue"))
    restless = ", ".join(f"{count} {word}" for count, word in counts if count)
    said = f"{counted(active, 'active saga')}" if active else "No active sagas"
    said += f": {restless}." if restless else "."
    wrongs = [brief(one) for one in found if one.code != "overdue"]
    if work.failed and not any(one.code == "parked" for one in found):
        wrongs.insert(0, f"{counted(work.failed, 'saga')} parked")
    # Problems of workers are in `found`.
    trouble = [s.name for s in servers if s.verdict == "bad" and s.name != "Workers"]
    if trouble:
        wrongs.insert(0, f"trouble with {' and '.join(trouble)}")
    if not wrongs:
        return said if restless else f"{said} No known problems."
    more = len(wrongs) - _WORDS
    told = ", ".join(wrongs[:_WORDS]) + (f", and {more} more" if more > 0 else "")
    return f"{told[0].upper()}{told[1:]}. {said}"


def brief(one: Problem) -> str:
    """A problem in a headline."""
    if one.code == "parked":
        return f"{one.said.partition(' ')[0]} {'saga' if one.said[:2] == '1 ' else 'sagas'} parked"
    return one.brief


@dataclass(frozen=True, slots=True)
class Need:
    """Something that needs attention, and the page where that can be given."""

    said: str
    cure: str = ""
    href: str = ""
    link: str = ""


def needs(servers: Sequence[Server], found: Sequence[Problem]) -> list[Need]:
    """All that needs attention but parked sagas, which are listed one by one. Pure."""
    listed = [
        Need(f"{server.name}: {server.said}", server.cure)
        for server in servers
        if server.verdict == "bad" and server.name != "Workers" and server.lasting
    ]
    for one in found:
        if one.code != "parked":
            href, link = _PLACES.get(one.code, ("", ""))
            told = (one.brief, "") if one.code in _MENDED_HERE else (one.said, one.cure)
            listed.append(Need(*told, href, link))
    return listed


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
        return Server(name, "bad", said, cure, lasting=known.since_seconds >= _LONG)
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
        else Server(
            "Workers", "bad", "no worker is alive, so commands wait", "Start one: evosaga worker"
        )
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
        cure = "See why on the page of dead letters"
        return [*found, Server("Dead letters", "warn", f"{backlog.dead} dead {letters}", cure)]
    return [*found, Server("Dead letters", "ok", "none")]
