"""Dead letters: commands that could not be processed, to be discarded or sent again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from evosaga.events import dead_letters
from evosaga.events.dead_letters import StoredDeadLetter
from evosaga.orchestrator.api.auth import Caller
from evosaga.orchestrator.api.pages.forms import (
    PageProblem,
    Reader,
    Submitted,
    absent,
    frame,
    page_router,
    parts,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import ROOT, respond

router: Final = page_router()

_HERE: Final = f"{ROOT}/letters"
_SHOWN: Final = 50
_LONGEST: Final = 4000
"""Characters of a message that are shown; `evosaga letters --json` has all of it."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter for people. ``about``: whose it is, as far as the message can be read."""

    id: str
    came: datetime
    code: str
    said: str
    type: str
    about: str
    sent: str


@router.get(_HERE)
async def listed(request: Request, who: Reader) -> Response:
    """The newest, each with the reason and what was sent."""
    _for_operators(who)
    here = parts(request)
    found, more = await dead_letters.newest(here.redis, _SHOWN)
    return respond(
        "letters.html",
        **frame(request, who, "upkeep"),
        letters=[_letter(one) for one in found],
        more=more,
        done=_done(request),
        now=await here.pool.fetchval("SELECT now()"),
    )


@router.get(f"{ROOT}/selected-letters")
async def plan(request: Request, who: Reader) -> Response:
    """What would be done to the selected ones; nothing is changed."""
    _for_operators(who)
    ids = request.query_params.getlist("letter")
    found = await _chosen(request, ids)
    verb = "send" if request.query_params.get("do") == "send" else "discard"
    return respond(
        "selected_letters.html",
        **frame(request, who, "upkeep"),
        letters=[_letter(one) for one in found],
        verb=verb,
    )


@router.post(f"{ROOT}/selected-letters")
async def act(request: Request, who: Reader, submitted: Submitted) -> Response:
    """Discard them or send them again. Sent twice, a command does nothing the second time."""
    _for_operators(who)
    here = parts(request)
    found = await _chosen(request, submitted["letters"].split())
    if submitted["do"] == "send":
        await dead_letters.send_again(here.redis, found)
        return see_other(f"{_HERE}?sent={len(found)}")
    gone = await dead_letters.delete(here.redis, [one.id for one in found])
    return see_other(f"{_HERE}?discarded={gone}")


def _for_operators(who: Caller) -> None:
    """A message that could not be read belongs to no organization for certain."""
    if who.organization_id is not None:
        raise absent("page")


async def _chosen(request: Request, ids: Sequence[str]) -> list[StoredDeadLetter]:
    """Those of the ids that are still there. Raises ``PageProblem`` when none is."""
    found = await dead_letters.some(parts(request).redis, list(dict.fromkeys(ids))[:_SHOWN])
    if not found:
        said = "None is selected, or they were discarded or sent again meanwhile."
        raise PageProblem(400, "No dead letter to act on", said)
    return found


def _done(request: Request) -> str:
    """What the form before this page did."""
    for name, said in (("sent", "sent again"), ("discarded", "discarded")):
        number = request.query_params.get(name, "")
        if number.isdecimal() and len(number) < 4:
            return f"{number} {said}."
    return ""


def _letter(one: StoredDeadLetter) -> Letter:
    sent = one.data.decode(errors="backslashreplace")
    body = _body(one.data)
    data = body.get("data")
    about = data if isinstance(data, dict) else {}
    told = [about.get(name) for name in ("name", "instance_name", "organization_id")]
    return Letter(
        one.id,
        datetime.fromtimestamp(int(one.id.partition("-")[0]) / 1000, UTC),
        one.code,
        one.message,
        str(body.get("type", ""))[:80],
        ", ".join(part[:120] for part in told if isinstance(part, str)),
        sent if len(sent) <= _LONGEST else f"{sent[:_LONGEST]}…",
    )


def _body(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
