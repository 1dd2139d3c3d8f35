"""Renders templates to pages and makes untrusted text safe to show."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evosaga.orchestrator.api.pages.step_words import step_word
from evosaga.orchestrator.api.pages.time_axis import duration

HERE: Final = Path(__file__).parent
HOME: Final = "/"
ROOT: Final = "/ui"
"""Prefix of all pages but the first; paths without it belong to the JSON routes."""

NAVIGATION: Final = (
    ("now", "Now", HOME),
    ("sagas", "Sagas", f"{ROOT}/sagas"),
    ("integrations", "Integrations", f"{ROOT}/integrations"),
    ("upkeep", "Maintenance", f"{ROOT}/upkeep"),
    ("alerts", "Alerts", f"{ROOT}/alerts"),
    ("definitions", "Definitions", f"{ROOT}/definitions"),
)
"""Name, title and address of each navigation entry."""
_WHATSAPP: Final = frozenset({"integrations", "upkeep"})
"""The entries that are there only with WhatsApp."""


def navigation(whatsapp: bool) -> list[tuple[str, str, str]]:
    """The entries of a page's navigation."""
    return [one for one in NAVIGATION if whatsapp or one[0] not in _WHATSAPP]


HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

WORDS: Final = {
    "running": "running",
    "compensating": "rolling back",
    "completed": "completed",
    "compensated": "rolled back",
    "failed": "needs attention",
    "rejected": "refused",
}
"""A status in plain words; the exact word is shown beside it where it matters."""


def shown(value: Any) -> Any:
    """Text from outside without characters that would reorder or hide the text around it.

    Escaping removes markup; this removes control characters and the marks that change the direction
    of writing, with which one name can look like another.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if value.isascii() and value.isprintable():
        return value
    return "".join(_shown_character(character) for character in value)


def _shown_character(character: str) -> str:
    if character in "\n\t":
        return " "
    hidden = unicodedata.category(character) in ("Cc", "Cs") or character in _TURNING
    return "\N{REPLACEMENT CHARACTER}" if hidden else character


_TURNING: Final = frozenset(
    "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def clock(at: datetime) -> str:
    """A moment, to the second, in UTC: the server cannot know the browser's time zone."""
    return at.astimezone(UTC).strftime("%b %d %H:%M:%S").replace(" 0", " ")


def precise(at: datetime) -> str:
    """The time of day to the millisecond."""
    return at.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]


def ago(at: datetime, now: datetime) -> str:
    """How long ago, or how long until."""
    seconds = int((now - at).total_seconds())
    if seconds == 0:
        return "now"
    said = f"{abs(seconds)} s" if abs(seconds) < 60 else duration(float(abs(seconds)))
    return f"{said} ago" if seconds > 0 else f"in {said}"


def minute(at: datetime) -> str:
    """The time of day to the minute, for the axis of a chart."""
    return at.astimezone(UTC).strftime("%H:%M")


def weekday(at: datetime) -> str:
    """A day for the axis of a chart."""
    return at.astimezone(UTC).strftime("%a %H:%M")


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


_FIELD: Final = re.compile(r"[a-z]+_[a-z_]+:")


def sentence(text: str) -> str:
    """With a capital letter and a full stop; a field's name at its beginning stays as it is."""
    first = text[:1] if _FIELD.match(text) else text[:1].upper()
    return f"{first}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def short(value: UUID | str) -> str:
    """The end of an id: ids are ordered by time, so their beginnings are alike."""
    text = str(value)
    return f"…{text[-8:]}" if len(text) > 12 else text


_environment: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "clock": clock,
    "precise": precise,
    "minute": minute,
    "weekday": weekday,
    "step_word": step_word,
    "ago": ago,
    "iso": iso,
    "short": short,
    "duration": duration,
    "sentence": sentence,
}
_environment.globals |= {
    "WORDS": WORDS,
    "ROOT": ROOT,
    "HOME": HOME,
    "navigation": navigation,
}


def render(template: str, **context: Any) -> str:
    """The HTML of a page or of a fragment."""
    return _environment.get_template(template).render(**context)


def respond(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page with the headers that every page has."""
    return HTMLResponse(render(template, **context), status, dict(HEADERS))
