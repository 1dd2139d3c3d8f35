"""docs/architecture.md says what is so: its paths exist, none is missing, its arrows are held."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FACE = "evosaga"
"""Symbolic links to the other folders, so it has no packages of its own."""


def block(title: str) -> list[str]:
    """The lines of the first fenced block below a heading."""
    below = PAGE.split(f"\n## {title}\n", 1)[1]
    return below.split("```text\n", 1)[1].split("\n```", 1)[0].splitlines()


def drawn() -> set[str]:
    """The folders in the drawing of the tree, as paths from the top."""
    found, top = set(), ""
    for line in block("The tree"):
        if match := re.match(r"( *)([a-z_/]+)/ {2,}\S", line):
            if not match[1]:
                top = match[2]
            found.add(match[2] if not match[1] else f"{top}/{match[2]}")
    return found


def test_every_package_is_drawn_and_every_drawn_folder_is_there() -> None:
    packages = {
        str(path.parent.relative_to(ROOT))
        for folder in ("orchestrator", "sagas", "events", "migrations")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert drawn() - {"tests", FACE} == packages


def test_every_path_on_the_page_exists() -> None:
    paths = set(re.findall(r"\b(?:orchestrator|sagas|events|migrations|tests)/[\w/.]*\w", PAGE))
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert len(paths) > 30
    assert not missing


@pytest.fixture(scope="module")
def contracts() -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return found


def test_the_arrows_are_those_that_the_linter_enforces(contracts: list[dict[str, Any]]) -> None:
    inside = [c for c in contracts if c.get("containers") == ["evosaga.orchestrator"]]
    assert [c["layers"] for c in inside] == [block("The arrows")]


def test_what_is_forbidden_to_know_whatsapp_is_told_in_full(
    contracts: list[dict[str, Any]],
) -> None:
    told = PAGE.split("are forbidden to", 1)[1].split(".\n\n", 1)[0]
    modules = {path.removesuffix(".py").strip("/") for path in re.findall(r"`([^`]+)`", told)}
    enforced = next(
        c["source_modules"]
        for c in contracts
        if "evosaga.orchestrator.whatsapp" in c.get("forbidden_modules", [])
    )
    assert modules == {name.removeprefix("evosaga.").replace(".", "/") for name in enforced}


def test_few_doors_lead_into_the_orchestrator() -> None:
    entries = [e for e in (ROOT / "orchestrator").iterdir() if not e.name.startswith("__pycache__")]
    assert len(entries) <= 16, sorted(e.name for e in entries)
