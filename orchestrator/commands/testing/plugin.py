"""The pytest plugin: a class decorated with ``torture`` is a set of tests, wherever it is found.

    pytest                            those of the test files
    pytest --evosaga hotel.world      those of a module
    pytest --evosaga-mutate           and each mistake put into the author's steps must be caught

Imported by every pytest where evosaga is installed, so it imports nothing of evosaga before it
has to.
"""

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("evosaga", "torture of sagas")
    group.addoption(
        "--evosaga",
        action="append",
        default=[],
        metavar="MODULE",
        help="torture the sagas of this module",
    )
    group.addoption(
        "--evosaga-faults", type=int, default=None, metavar="N", help="faults in one run at most"
    )
    group.addoption(
        "--evosaga-mutate",
        action="store_true",
        help="put mistakes into the steps, each of which must be caught",
    )
    group.addoption(
        "--evosaga-repeat",
        type=_faults,
        metavar="FAULTS",
        help="only the run that a failure names under `Again`",
    )


def pytest_pycollect_makeitem(
    collector: pytest.Collector, name: str, obj: object
) -> list[pytest.Item] | None:
    found = vars(obj).get("torture") if isinstance(obj, type) else None
    if found is None or type(found).__module__ != "evosaga.orchestrator.commands.testing.torture":
        return None
    return list(_items(collector, name, found))


def _items(parent: pytest.Collector, name: str, torture: Any) -> Iterator["TortureItem"]:
    most = parent.config.getoption("--evosaga-faults")
    depth = torture.faults if most is None else most
    yield TortureItem.from_parent(
        parent, name=f"{name}[{depth} fault{'' if depth == 1 else 's'}]", torture=torture
    )
    if parent.config.getoption("--evosaga-mutate"):
        yield MutantItem.from_parent(parent, name=f"{name}[mistakes]", torture=torture)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add those of the modules that were named."""
    for name in config.getoption("--evosaga"):
        module = _module(name)
        found = {
            attribute: vars(value)["torture"]
            for attribute, value in vars(module).items()
            if isinstance(value, type) and "torture" in vars(value)
        }
        if not found:
            raise pytest.UsageError(_nothing(module))
        parent = _Module.from_parent(session, name=name, path=Path(module.__file__ or name))
        for attribute, torture in found.items():
            items.extend(_items(parent, attribute, torture))


def _module(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise pytest.UsageError(
            f"--evosaga {name}: can't be imported ({type(error).__name__}: {error}); is it "
            "installed here, and is the name right?"
        ) from error


def _nothing(module: ModuleType) -> str:
    return (
        f"--evosaga {module.__name__}: there is nothing to torture; decorate a fake of what the "
        "steps use with @evosaga.testing.torture(A_SAGA, an_input)"
    )


class _Module(pytest.Collector):
    def collect(self) -> list[pytest.Item]:
        return []


class TortureItem(pytest.Item):
    """Every run with up to so many faults."""

    def __init__(self, *, torture: Any, **more: Any) -> None:
        super().__init__(**more)
        self.torture = torture

    def runtest(self) -> None:
        if again := self.config.getoption("--evosaga-repeat"):
            self.torture.repeat(*again)
            return
        tally = self.torture(self.config.getoption("--evosaga-faults"))
        ends = ", ".join(f"{times} {' '.join(end)}" for end, times in tally.endings.most_common())
        self.add_report_section("call", "torture", f"{tally.runs} runs: {ends}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        from evosaga.orchestrator.commands.testing.explorer import Broken

        if isinstance(excinfo.value, Broken):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


def _faults(said: str) -> tuple[Any, ...]:
    """What follows ``Again``: the faults, and the number of the input where it is not the first."""
    try:
        faults, *number = ast.literal_eval(f"[{said}]")
        return tuple((int(at), str(how)) for at, how in faults), *map(int, number[:1])
    except (ValueError, SyntaxError, TypeError):
        raise argparse.ArgumentTypeError(
            f"{said!r}: copy what a failure says, such as \"((4, 'lost'),)\""
        ) from None


class MutantItem(TortureItem):
    """Each mistake in a step must break a law."""

    def runtest(self) -> None:
        from evosaga.orchestrator.commands.testing.explorer import Broken
        from evosaga.orchestrator.commands.testing.mutants import survivors

        if left := survivors(self.torture):
            raise Broken("\n".join(left))
