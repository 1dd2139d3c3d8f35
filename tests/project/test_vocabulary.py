"""One vocabulary on pages, in the terminal, in the API's document and in the documentation.

The words of sagas, FastAPI, Prometheus and operations are used; idioms of our own are not. What is
in code (`stumbled`, ``evosaga.chores``) is a stored name, which stays.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Final

import pytest

from tests.support.source import parsed

ROOT: Final = Path(__file__).parents[2]
INSTEAD: Final = {
    r"all is calm": "No active sagas. No known problems.",
    r"what it stands on": "Dependencies",
    r"birthmarks?": "ownership token",
    r"chores?": "background job",
    r"upkeep": "maintenance",
    r"needs a person": "needs attention",
    r"turn(s|ed|ing)? round": "rollback started",
    r"stumbl\w+": "failed",
    r"nobody('s)?|somebody('s)?|whoever('s)?": "the program, person or worker that is meant",
    r"keeps? house": "maintenance",
    r"looks? away": "what is really not done",
    r"outrun": "version conflict",
    r"goes round": "runs",
}
"""Each idiom, and what to write."""
LABELS: Final = {"Leave it", "Chores", "Upkeep", "Needs a person"}
"""What no button, heading or link of a page is called."""
IDIOM: Final = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)
STORED: Final = {
    "stumbled": "a code in status rows",
    "chores": "a code of alerts",
    "left-to-whoever-knows": "a consumer group",
    "nobody": "an account of the system",
}
"""Names that are stored or public, so they stay as they are."""
PROSE: Final = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md"))),
]


def idioms(text: str) -> list[str]:
    return [found.group() for found in IDIOM.finditer(text)]


def words_of(markdown: str) -> str:
    """The text without code, addresses of links, comments and names of tables as headings."""
    for noise in (
        r"```.*?```",
        r"<!--.*?-->",
        r"`[^`]*`",
        r"\]\([^)]*\)",
        r"^#+ `?evosaga\.\w+`?$",
        r"^#+ `?\w+`?$",
    ):
        markdown = re.sub(noise, " ", markdown, flags=re.DOTALL | re.MULTILINE)
    return markdown


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_of_the_documentation_has_an_idiom_of_our_own(path: Path) -> None:
    text = path.read_text()
    if path.name == "command-line.md":  # these are the pages of --help, as blocks
        text = text.replace("```", "")
    assert idioms(words_of(text)) == []


def test_neither_does_the_document_of_the_api() -> None:
    golden = json.loads((ROOT / "tests/contract/golden/openapi.json").read_text())

    def texts(value: object, key: str = "") -> Iterator[str]:
        match value:
            case dict():
                for name, of in value.items():
                    yield from texts(of, name)
            case list():
                for of in value:
                    yield from texts(of, key)
            case str() if key in ("description", "summary", "title", "detail"):
                yield value

    assert [said for said in texts(golden) if idioms(re.sub("`[^`]*`", "", said))] == []


def test_neither_does_a_page_or_its_labels() -> None:
    found = []
    for path in sorted((ROOT / "orchestrator/api/pages/templates").glob("*.html")):
        source = re.sub(r"{[%{#].*?[%}#]}", " ", path.read_text(), flags=re.DOTALL)
        text = re.sub(r"<[^>]*>", " ", re.sub(r"<code>.*?</code>", " ", source, flags=re.DOTALL))
        labels = {label.strip() for label in re.findall(r">([^<>]+)<", source)}
        found += [(path.name, word) for word in [*idioms(text), *sorted(labels & LABELS)]]
    assert found == []


def test_neither_does_a_sentence_or_log_event_of_the_program() -> None:
    found = []
    for package in ("events", "sagas", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found += [(path.name, said) for said in _strings(parsed(path))]
    assert found == []


def _strings(tree: ast.AST) -> Iterator[str]:
    """Strings with an idiom that are no docstring, no SQL, no address and no stored name."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        said = node.value
        if id(node) in docstrings or said in STORED or "/" in said.split(" ")[0]:
            continue
        names = re.sub(r"`[^`]*`|\bevosaga\.\w+|\w+\.html", "", said)
        if idioms(names) and " " in names and "SELECT" not in said and "\n" not in said:
            yield said


def test_sentences_of_readme_and_documentation_are_short() -> None:
    """20 words on average in each page that is written by hand, with few exceptions at 22."""
    for path in PROSE:
        lengths = list(_sentences(path.read_text()))
        if "reference" not in path.parts and len(lengths) > 10:
            assert mean(lengths) <= 22, f"{path.name}: {mean(lengths):.1f} words a sentence"
    every = [
        n for path in PROSE if "reference" not in path.parts for n in _sentences(path.read_text())
    ]
    assert mean(every) <= 16


def _sentences(markdown: str) -> Iterator[int]:
    """The number of words of each sentence; tables, headings and code are none."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^\s*([-*]|\d+\.)\s+", "\n", text, flags=re.MULTILINE)
    for paragraph in text.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not re.match(r"\s*([#|<]|!\[)", line)]
        said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "x", " ".join(lines)))
        for sentence in re.split(r"(?<=[.!?:])[\"')]*\s+(?=[A-Z*x\"(])", said):
            if (words := len(sentence.split())) >= 3:
                yield words
