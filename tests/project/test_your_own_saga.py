"""The tutorial is true: its code runs, and it is the code that ``evosaga new`` writes."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "your-own-saga.md"
STARTER = ROOT / "orchestrator" / "cli" / "starter"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def bare(text: str) -> list[str]:
    """Its lines of code, without docstrings and remarks."""
    text = re.sub(r'"""(.*?)"""', "", text, flags=re.DOTALL)
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_the_code_of_the_tutorial_runs_and_its_torture_passes() -> None:
    page = ModuleType("your_own_saga")
    sys.modules[page.__name__] = page
    try:
        exec(compile("\n".join(blocks("python")), str(PAGE), "exec"), vars(page))
    finally:
        del sys.modules[page.__name__]


@pytest.mark.parametrize("name", ["reserve", "release", "charge"])
def test_its_steps_are_those_of_the_starter(name: str) -> None:
    def function(text: str) -> list[str]:
        found = re.search(rf"^async def {name}\(ctx.*?(?=^\S)", text + "\nend", re.M | re.S)
        assert found is not None
        return bare(found[0])

    page = "\n".join(blocks("python"))
    assert function(page) == function((STARTER / "sagas.py.txt").read_text())
