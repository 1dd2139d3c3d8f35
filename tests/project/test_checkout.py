"""The promises that the checkout itself makes, whatever the code in it does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

TOP_LEVEL = {
    "orchestrator",
    "sagas",
    "events",
    "evosaga",
    "migrations",
    "tests",
    "docs",
    "deploy",
    "pyproject.toml",
    "requirements.lock",
    "Makefile",
    "Dockerfile",
    "docker-compose.yml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
}


@pytest.fixture(scope="module")
def committed() -> list[str]:
    """Every file that git knows, as a path from the top."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("only a git checkout can tell which files belong to the project")
    told = subprocess.run(
        [git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if told.returncode or not told.stdout:
        pytest.skip(f"git names no files here: {told.stderr.strip() or 'nothing is committed yet'}")
    return [name for name in told.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def locked() -> dict[str, list[tuple[str, str]]]:
    """For each package in the lock file its versions, each with all that belongs to it."""
    entry = re.compile(r"^([\w.-]+)==([^\s;]+)(.*(?:\n[ ]+.*)*)", re.MULTILINE)
    found: dict[str, list[tuple[str, str]]] = {}
    for name, version, rest in entry.findall((ROOT / "requirements.lock").read_text()):
        found.setdefault(canonicalize_name(name), []).append((version, rest))
    return found


def test_the_top_level_holds_only_what_a_newcomer_expects(committed: list[str]) -> None:
    tops = {name.partition("/")[0] for name in committed}
    strangers = {top for top in tops if not top.startswith(".")} - TOP_LEVEL
    assert not strangers, f"{sorted(strangers)} should live in one of the folders that are there"


def test_no_file_names_a_path_of_somebodys_machine(committed: list[str]) -> None:
    somebodys = r"/(?:home|Users)/\w+/|[A-Z]:\\Users\\|/root/\w"
    if len(ROOT.parts) > 2:
        somebodys += "|" + re.escape(str(ROOT)) + r"\b"
    found = {
        f"{name}: {match[0]}"
        for name in committed
        for match in re.finditer(somebodys, (ROOT / name).read_text(errors="replace"))
    }
    assert not found


def test_the_lock_file_holds_every_dependency_in_a_version_that_fits(
    project: dict[str, Any], locked: dict[str, list[tuple[str, str]]]
) -> None:
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wrong = [
        line
        for group in groups
        for line in group
        for wanted in [Requirement(line)]
        if wanted.name != "evosaga"
        for versions in [[version for version, _ in locked.get(canonicalize_name(wanted.name), [])]]
        if not versions or not all(wanted.specifier.contains(version, True) for version in versions)
    ]
    assert not wrong, f"requirements.lock does not fit {wrong}: run `make lock`"


def test_the_lock_file_names_the_hash_of_every_package(
    locked: dict[str, list[tuple[str, str]]],
) -> None:
    assert locked
    unhashed = [
        f"{name}=={version}"
        for name, entries in locked.items()
        for version, rest in entries
        if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest)
    ]
    assert not unhashed, f"without a hash: {unhashed}: run `make lock`"


def test_the_arrows_between_the_packages_run_one_way() -> None:
    pytest.importorskip("importlinter", reason="the dev extra is not installed")
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports;"
            " sys.exit(lint_imports(no_cache=True, no_logo=True))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
