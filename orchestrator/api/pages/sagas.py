"""Pages of sagas: the list with filters and search, and one with its timeline."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from evosaga.events.model import Recorded
from evosaga.orchestrator.api.auth import Caller, visible
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages.forms import (
    Reader,
    absent,
    frame,
    page_router,
    parts,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import ROOT, WORDS, respond, sentence
from evosaga.orchestrator.api.pages.runbook import place
from evosaga.orchestrator.api.pages.saga_view import cancellable, saga_view
from evosaga.orchestrator.api.reads import reads_of
from evosaga.orchestrator.engine.state import IllegalTransition, State, replay
from evosaga.orchestrator.queries.sagas import (
    BadCursor,
    Filter,
    SagaView,
    Unreadable,
    find_saga,
    history,
    list_sagas,
)
from evosaga.orchestrator.queries.timeparse import moment
from evosaga.orchestrator.queries.why import SagaFacts, living, why
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION

router: Final = page_router()

_PAGE: Final = 50
_FILTERS: Final = ("status", "saga", "organization", "instance", "since")
_OTHERS: Final = ("q", "cursor")
_SINCE_SAID: Final = {"15m": "15 minutes", "1h": "hour", "24h": "24 hours", "7d": "7 days"}
_LIVE_SECONDS: Final = 4.0
"""How long a poll waits for a change; the times on the page grow old meanwhile."""


@router.get(f"{ROOT}/sagas")
async def listed(request: Request, who: Reader) -> Response:
    """A page of sagas, newest first. Invalid parameters are reported on it."""
    here = parts(request)
    query = request.query_params
    search = query.get("q", "").strip()[:200]
    if search:  # an address of earlier releases
        found = await _searched(here, who, search)
        return see_other(found or f"{ROOT}/search?{urlencode({'q': search})}")
    now = await here.pool.fetchval("SELECT now()")
    asked, ignored = _understood(query, now)
    wanted = _filter(asked, who, now)
    cursor = query.get("cursor") or None
    page: list[SagaView] = []
    following = None
    if wanted is not None:
        try:
            page, following = await list_sagas(
                await reads_of(request), wanted, limit=_PAGE, cursor=cursor
            )
        except BadCursor:
            return see_other(_address(asked))
    return respond(
        "sagas.html",
        **frame(request, who, "sagas"),
        sagas=page,
        clinics=await here.names_of([saga.saga_id for saga in page]),
        asked=asked,
        ignored=ignored,
        now=now,
        names=sorted({name for name, _ in here.registry.versions} | {asked["saga"]} - {""}),
        since={asked["since"]: asked["since"]} | _SINCE_SAID if asked["since"] else _SINCE_SAID,
        older=_address(asked | {"cursor": following}) if following else None,
        newest=_address(asked) if cursor else None,
        filtered=any(asked.values()),
    )


def _understood(query: Mapping[str, str], now: datetime) -> tuple[dict[str, str], list[str]]:
    """The filters, and a sentence for each invalid parameter."""
    asked = {name: query.get(name, "").strip()[:80] for name in _FILTERS}
    ignored = [
        f"There is no filter {name[:40]!r}." for name in query if name not in (*_FILTERS, *_OTHERS)
    ]
    if asked["status"] and asked["status"] not in WORDS:
        ignored.append(f"There is no status {asked['status']!r}; there are {', '.join(WORDS)}.")
        asked["status"] = ""
    if asked["since"] and asked["since"] not in _SINCE_SAID:
        try:
            moment(asked["since"], now)
        except ValueError as error:
            ignored.append(sentence(str(error)))
            asked["since"] = ""
    if asked["organization"]:
        try:
            asked["organization"] = str(UUID(asked["organization"]))
        except ValueError:
            ignored.append(f"An organization is a UUID, which {asked['organization']!r} is not.")
            asked["organization"] = ""
    return asked, ignored


def _address(asked: Mapping[str, str | None]) -> str:
    given = {name: value for name, value in asked.items() if value}
    return f"{ROOT}/sagas" + (f"?{urlencode(given)}" if given else "")


def _filter(asked: Mapping[str, str], who: Caller, now: datetime) -> Filter | None:
    """The filter; None when nothing can match: another organization was requested."""
    organization = who.organization_id
    if asked["organization"]:
        organization = UUID(asked["organization"])
        if not visible(who, organization):
            return None
    return Filter(
        status=asked["status"] or None,
        saga=asked["saga"] or None,
        organization_id=organization,
        instance_name=asked["instance"] or None,
        since=moment(asked["since"], now) if asked["since"] else None,
    )


async def _searched(here: AppContext, who: Caller, text: str) -> str | None:
    """The page for a saga id, command id, instance name or organization."""
    view = await find_saga(here.pool, text, who.organization_id)
    if view is not None and visible(who, view.organization_id):
        if view.instance_name == text:
            return _address({"instance": text})
        return f"{ROOT}/sagas/{view.saga_id}"
    try:
        organization = UUID(text)
    except ValueError:
        return None
    wanted = Filter(organization_id=organization)
    if visible(who, organization) and (await list_sagas(here.pool, wanted, limit=1))[0]:
        return _address({"organization": str(organization)})
    return None


@router.get(ROOT + "/sagas/{saga_id}")
async def one(request: Request, who: Reader, saga_id: str) -> Response:
    """The page of one saga, found by its id, its command's id or its instance's name."""
    named = await find_saga(parts(request).pool, saga_id, who.organization_id)
    if named is not None and str(named.saga_id) != saga_id and visible(who, named.organization_id):
        return see_other(f"{ROOT}/sagas/{named.saga_id}")
    content = await _content(request, who, saga_id)
    return respond("saga.html", **frame(request, who, "sagas"), **content)


@router.get(ROOT + "/sagas/{saga_id}/live")
async def one_again(request: Request, who: Reader, saga_id: str) -> Response:
    """The fragment of the page that changes, after a change or a few seconds."""
    view = await its_view(parts(request), who, saga_id)
    try:
        seen = int(request.query_params.get("seen", "0"))
    except ValueError:
        seen = 0
    if not view.over and view.sequence <= seen:
        await request.app.state.watch.moved(view.saga_id, view.sequence, _LIVE_SECONDS)
    content = await _content(request, who, saga_id)
    return respond("saga_live.html", **frame(request, who, "sagas"), **content)


async def its_view(here: AppContext, who: Caller, saga_id: str) -> SagaView:
    """The saga. Raises the same 404 for a missing one and for one of another organization."""
    try:
        wanted = UUID(saga_id)
    except ValueError:
        raise absent("saga") from None
    view = await find_saga(here.pool, str(wanted))
    if view is None or view.saga_id != wanted or not visible(who, view.organization_id):
        raise absent("saga")
    return view


async def _content(request: Request, who: Caller, saga_id: str) -> dict[str, Any]:
    here = parts(request)
    view = await its_view(here, who, saga_id)
    told = await its_history(here, view)
    now = await here.pool.fetchval("SELECT now()")
    definition = here.registry.find(view.saga, view.version)
    ahead = await find_saga(here.pool, str(view.behind)) if view.behind else None
    explain = here.explain(view.saga)
    workers = await living(here.pool)
    known = SagaFacts(view, definition, told, workers, now, ahead, explain)
    state = fold(told)
    everything = request.query_params.get("all") == "1"
    return {
        "saga": view,
        "now": now,
        "told": saga_view(view, told or [], definition, now, explain.note, everything=everything),
        "why": why(known) if view.status != "completed" else None,
        "tone": _tone(view, state),
        "can_replay": view.status in ("failed", "compensated"),
        "can_cancel": cancellable(definition, state) if state else False,
        "made": view.status == "completed" and view.saga == CREATE_INTEGRATION.name,
        "everything": everything,
        "runbook": place(here.settings.runbook_url, view.code),
        "clinic": (await here.names_of([view.saga_id])).get(view.saga_id),
    }


async def its_history(here: AppContext, view: SagaView) -> list[Recorded] | None:
    """All of its events; None when this release cannot read them."""
    try:
        return await history(here.pool, view.saga_id)
    except Unreadable:
        return None


def fold(told: list[Recorded] | None) -> State | None:
    """The state after the history; None when this release cannot compute it."""
    try:
        return replay(recorded.event for recorded in told) if told else None
    except IllegalTransition:
        return None


def _tone(view: SagaView, state: State | None) -> str:
    if view.status == "failed":
        return "failed"
    if view.status in ("compensating", "compensated"):
        return "undo"
    held = state is not None and state.failure is not None and state.failure.outcome == "held"
    return "held" if held and not view.over else "plain"
