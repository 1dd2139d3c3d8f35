"""Finds links that lead nowhere, and the blocks of code that are meant to run, in Markdown."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]
_FENCE: Final = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_RUNNABLE: Final = re.compile(r"<!-- runnable: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)


def pages() -> list[Path]:
    """Every page of the documentation, those at the top too."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", page.read_text())


def broken(page: Path) -> Iterator[str]:
    """The links of a page whose file or heading is not there."""
    for target in _LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.relative_to(ROOT)}: {target}"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{page.relative_to(ROOT)}: {target} (no such heading)"


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub and MkDocs give to the headings of a page."""
    return frozenset(_slug(heading) for heading in _HEADING.findall(prose(page)))


def _slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def runnable() -> list[tuple[str, str, str]]:
    """Blocks that are marked to run: page, how, and the code."""
    return [
        (str(page.relative_to(ROOT)), how, code)
        for page in pages()
        for how, code in _RUNNABLE.findall(page.read_text())
    ]
