"""The author's fake of the outside, as a worker's steps see it.

A fake is a plain object whose ``async`` methods answer at once. Each call of one is an ``Op``, so
that it can be refused, get lost, come late, or be the last thing that its worker does. What it
keeps in its attributes is the world: a call that changes it has taken effect.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, Final

from evosaga.orchestrator.commands.testing.memory import at_once
from evosaga.orchestrator.commands.testing.workers import Worker

_PLAIN: Final = (str, bytes, int, float, bool, complex, type(None))
CALL: Final = "call"
LOOK: Final = "look"


@dataclass(frozen=True)
class Effect:
    """A call that changed the world: ``path`` is ``bank.charge``, ``at`` in virtual seconds."""

    path: str
    said: str
    at: float
    worker: str


class Proxy:
    """An object of the world in the hands of one worker's steps."""

    def __init__(self, worker: Worker, target: object, path: str = "") -> None:
        self._worker, self._target, self._path = worker, target, path

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        path = f"{self._path}.{name}".lstrip(".")
        if inspect.iscoroutinefunction(found):
            return self._call(path, found)
        if is_dataclass(found) or (hasattr(found, "__dict__") and not callable(found)):
            return Proxy(self._worker, found, path)
        return found

    def _call(self, path: str, method: Callable[..., Any]) -> Callable[..., Any]:
        worker: Any = self._worker

        async def call(*args: Any, **kwargs: Any) -> Any:
            given = [*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())]
            said = f"{path}({', '.join(given)})"
            kind = LOOK if path in worker.cluster.looks else CALL

            def do() -> Any:
                return worker.cluster.happens(
                    path, said, worker.name, lambda: at_once(method(*args, **kwargs))
                )

            return await worker.op(kind, do, said)

        return call


def plain(value: Any) -> Any:
    """The world as data that can be compared and shown: its attributes, by name."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted((plain(one) for one in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "__dict__"):
        return {k: plain(v) for k, v in sorted(vars(value).items()) if not k.startswith("_")}
    return str(value)


def state_of(world: Any) -> Any:
    """What counts when the saga is over: ``world.state()`` where it has that, else all of it."""
    own = getattr(world, "state", None)
    return plain(own()) if callable(own) else plain(world)


def difference(found: Any, expected: Any, where: str = "") -> str:
    """The first place where they differ; empty: nowhere."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted(found.keys() | expected.keys()):
            there = f"{where}.{name}".lstrip(".")
            if name not in expected:
                return f"{there} is {found[name]!r}, and should not be there"
            if name not in found:
                return f"{there} is gone, and should be {expected[name]!r}"
            if said := difference(found[name], expected[name], there):
                return said
        return ""
    return (
        "" if found == expected else f"{where or 'the world'} is {found!r} instead of {expected!r}"
    )
