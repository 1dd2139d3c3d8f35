"""Prints the part of requirements.lock that some of the dependencies in pyproject.toml need.

    python .ci/subset.py runtime         what evosaga needs to run, without embedded servers
    python .ci/subset.py build           what the optional dependencies called "build" need

There is one lock file, and it holds what testing and developing need as well. The container image
takes its part of it, hashes included. Who needs whom stands in the comments that the lock's maker
writes; should a package be missed all the same, pip refuses, since its hash is not there.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==.*(?:\n[ ]+.*)*", re.MULTILINE)


def main(group: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = {**extras, "runtime": [*project["dependencies"], *extras["server"]]}
    needed = {name_of(requirement) for requirement in groups[group]}
    entries = {
        name_of(match["name"]): match[0]
        for match in ENTRY.finditer((ROOT / "requirements.lock").read_text())
    }
    while more := {n for n in entries if needed & parents(entries[n])} - needed:
        needed |= more
    sys.stdout.write("\n".join(entries[name] for name in sorted(needed)) + "\n")


def name_of(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name, f"not a requirement: {requirement!r}"
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def parents(entry: str) -> set[str]:
    via = entry.partition("# via")[2].replace("#", " ")
    return {name_of(line.strip()) for line in via.splitlines() if line.strip()}


if __name__ == "__main__":
    main(*sys.argv[1:])
