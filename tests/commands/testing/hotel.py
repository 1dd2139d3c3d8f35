"""The starter's hotel, as ``evosaga new hotel`` writes it, made importable for the tests."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from evosaga.orchestrator.cli.new import write


def made(folder: Path, name: str = "hotel") -> Path:
    """A package of that name in ``folder``, as the verb makes it."""
    place = folder / name
    place.mkdir()
    write(place, name)
    (place / name.replace("-", "_") / "__init__.py").touch()
    return place


@contextmanager
def imported(place: Path, package: str) -> Iterator[ModuleType]:
    """Its ``sagas`` module; afterwards it was never there."""
    sys.path.insert(0, str(place))
    try:
        yield importlib.import_module(f"{package}.sagas")
    finally:
        sys.path.remove(str(place))
        for name in [one for one in sys.modules if one.split(".")[0] == package]:
            del sys.modules[name]


def with_step(saga: Any, name: str, **changes: Any) -> Any:
    """The saga with another step of that name."""
    from dataclasses import replace

    return replace(
        saga, steps=tuple(replace(s, **changes) if s.name == name else s for s in saga.steps)
    )
