"""The runbook as a page: a paragraph for every alert, reason and dead-letter code.

It is the file of the documentation, which the wheel carries, so it is there at a moment when
nothing outside can be reached.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import Request
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import Response

from evosaga.orchestrator.api.pages.forms import Reader, absent, frame, page_router
from evosaga.orchestrator.api.pages.rendering import HERE, ROOT, respond

router: Final = page_router()
ADDRESS: Final = f"{ROOT}/runbook"
_PLACES: Final = (
    HERE / "runbook.md",
    HERE.resolve().parents[2] / "docs" / "monitoring" / "runbook.md",
)
"""In the wheel, and in a checkout."""
_TITLE: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_CODE: Final = re.compile(r"^### `([a-z0-9_]+)`$", re.MULTILINE)
_LINK: Final = re.compile(r"\[([^\]]+)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """What the runbook says of one code."""

    code: str
    text: Markup


@dataclass(frozen=True, slots=True)
class Chapter:
    title: str
    paragraphs: tuple[Paragraph, ...]


@router.get(ADDRESS)
async def runbook(request: Request, who: Reader) -> Response:
    """All of it; alerts and sagas link to the paragraph of their code."""
    found = chapters()
    if not found:
        raise absent("page")
    return respond("runbook.html", **frame(request, who, "alerts"), chapters=found)


def place(configured: str, code: str | None) -> str | None:
    """Where a page finds the paragraph of a code: the configured address, or the page above.

    None: there is none.
    """
    if code is None:
        return None
    if configured != ADDRESS and configured.startswith(("https://", "http://", "/")):
        return f"{configured}#{code}"
    return f"{ADDRESS}#{code}" if code in _codes() else None


@cache
def chapters() -> tuple[Chapter, ...]:
    """The file, read once; empty where an installation has none."""
    file = next((path for path in _PLACES if path.is_file()), None)
    return tuple(_read(file)) if file is not None else ()


@cache
def _codes() -> frozenset[str]:
    return frozenset(one.code for chapter in chapters() for one in chapter.paragraphs)


def _read(file: Path) -> Iterator[Chapter]:
    # Links lead to other files of the documentation, which are not here; HTML is shown as text.
    text = _LINK.sub(r"\1", file.read_text(encoding="utf-8"))
    markdown = MarkdownIt("commonmark", {"html": False})
    _, *parts = _TITLE.split(text)
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        _, *found = _CODE.split(body)
        yield Chapter(
            title,
            tuple(
                Paragraph(code, Markup(markdown.render(said)))  # noqa: S704  # our own file
                for code, said in zip(found[::2], found[1::2], strict=True)
            ),
        )
