"""The documentation says what is so: its lists come from the code, its links and examples work."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from evosaga.orchestrator.cli.verbs import app
from evosaga.testing import run
from tests.harness.documentation import links, meanings, reference, variables
from tests.support.commandline import forked
from tests.support.preloaded import run_pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
NAMED_IN_FULL = re.compile(r"\bEVOSAGA_[A-Z][A-Z_]*[A-Z]\b")
OF_TESTS = {"EVOSAGA_WRITE_GOLDEN"}


def test_the_reference_is_what_the_code_has() -> None:
    assert list(reference.stale()) == [], "run `make docs` and commit what it writes"


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    assert [wrong for page in links.pages() for wrong in links.broken(page)] == []


def module_of(page: str, code: str) -> ModuleType:
    """The code of a page, run as a module: pydantic looks for the module of a class by its name."""
    module = ModuleType(f"example_{Path(page).stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    try:
        exec(compile(code, page, "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
    return module


def test_the_first_saga_ends_as_its_page_shows() -> None:
    page = "docs/tutorials/first-saga.md"
    [(_, _, code)] = [one for one in links.runnable() if one[0] == page]
    hotel = module_of(page, code)
    for guest, euros, status in (("ada", 80, "completed"), ("bob", 500, "compensated")):
        booking = hotel.BookRoom(room=101, guest=guest, euros=euros)
        ended = run(hotel.BOOK_A_ROOM, booking, hotel.Hotel)
        assert ended.status == status
        assert bool(ended.world.rooms) == (status == "completed")


@pytest.mark.parametrize(
    ("page", "how", "code"), [pytest.param(*one, id=one[0]) for one in links.runnable()]
)
async def test_an_example_that_is_marked_as_runnable_runs(
    page: str, how: str, code: str, tmp_path: Path
) -> None:
    if how == "python":
        module_of(page, code)
        return
    assert how == "pytest"
    (tmp_path / "test_example.py").write_text(code)
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-c", "/dev/null"]
    words += ["--rootdir", str(tmp_path), "test_example.py"]
    ran = await forked(words, {"PATH": os.environ["PATH"]}, tmp_path, program=run_pytest)
    assert ran.code == 0, f"{page}\n{ran.out}{ran.err}"


def test_the_readme_is_short_and_leads_to_each_of_the_four_kinds() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    first_screen = "\n".join(lines[:40])
    for kind in ("tutorials", "how-to", "reference", "explanation"):
        assert f"(docs/{kind}/" in first_screen


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    pages = [page for page in pages if page.parts[0] != "monitoring"]  # has an index of its own
    assert [str(page) for page in pages if f"({page})" not in index] == ["index.md"]


def test_the_site_shows_every_page() -> None:
    site = yaml.safe_load((ROOT / ".ci" / "mkdocs.yml").read_text())
    shown = set(re.findall(r"[\w./-]+\.md", json.dumps(site["nav"])))
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert shown == pages


def of_us() -> Iterator[tuple[str, str]]:
    """What we write for others: the pages, and the files of a deployment."""
    for page in links.pages():
        if page.name != "CHANGELOG.md":
            yield str(page.relative_to(ROOT)), page.read_text()
    for file in (path for path in (ROOT / "deploy").rglob("*") if path.is_file()):
        yield str(file.relative_to(ROOT)), file.read_text()


def test_no_page_and_no_deployment_names_a_variable_that_nothing_reads() -> None:
    known = {one.name for one in variables.variables()} | OF_TESTS
    known |= {name.strip("`") for name in meanings.OTHER_VARIABLES}
    unknown = {
        f"{where}: {name}"
        for where, text in of_us()
        for name in set(NAMED_IN_FULL.findall(text)) - known
    }
    assert sorted(unknown) == []


def test_no_page_names_a_verb_that_there_is_not() -> None:
    named = re.compile(r"(?:^\$ (?:\.venv/bin/)?|`)evosaga ([a-z][a-z-]+)", re.MULTILINE)
    unknown = {
        f"{where}: evosaga {verb}"
        for where, text in of_us()
        for verb in set(named.findall(text)) - set(app)
    }
    assert sorted(unknown) == []


def test_no_page_names_a_metric_that_there_is_not() -> None:
    known = re.findall(r"`(evosaga_\w+)`", reference.metrics())
    named = re.compile(r"`(evosaga_(?!app\b|service\b)[a-z_]+)[`{]")
    unknown = {
        f"{where}: {metric}"
        for where, text in of_us()
        if not where.startswith("docs/monitoring")
        for metric in set(named.findall(text)) - set(known)
    }
    assert sorted(unknown) == []


def test_the_pages_are_written_in_short_sentences() -> None:
    """20 words on average. Tables, lists of names and blocks of code are no sentences."""
    long = {}
    for page in [README, *(ROOT / "docs" / "how-to").glob("*.md"), *(ROOT / "docs").glob("*/*.md")]:
        if page.parent.name in ("reference", "monitoring"):
            continue
        no_sentence = r"^\|.*$|^#.*$|^\d\. |^- |<!--.*?-->"
        text = re.sub(no_sentence, "\n", links.prose(page), flags=re.MULTILINE)
        sentences = [s.split() for s in re.split(r"[.:?!](?:\s|$)|\n\n", text)]
        sentences = [words for words in sentences if len(words) > 3]
        average = sum(map(len, sentences)) / max(1, len(sentences))
        if average > 20:
            long[page.name] = round(average, 1)
    assert long == {}
