"""Parts of libraries that are imported only where another library is there, and that we never use.

structlog draws tracebacks with rich, FastStream serves ASGI with uvicorn, redis-py counts for
OpenTelemetry, httpx has a command line. Each costs a process as much time at its start as a library
of its own, and we write tracebacks as text, serve with FastAPI, count ourselves and have a command
line of our own. So while one of these libraries is imported the other one looks as if it was not
installed; later it can be imported by whoever wants it.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

WITHOUT: Final = {
    "faststream": ("email_validator", "opentelemetry", "uvicorn"),
    "httpx": ("click", "pygments", "rich"),
    "redis": ("opentelemetry",),
    "structlog": ("rich",),
}


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, these can't be imported unless they were before."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


class _Lean:
    """Finds these libraries as Python does, and loads them without the others."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in WITHOUT:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _LeanLoader(spec.loader, WITHOUT[name]))
        return spec


class _LeanLoader:
    def __init__(self, loader: "Loader", absent: Sequence[str]) -> None:
        self._loader = loader
        self._absent = absent

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run it; afterwards it is as if its own loader had loaded it."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        with without(*self._absent):
            self._loader.exec_module(module)


def install() -> None:
    """From here on these libraries are loaded so; once."""
    if not any(isinstance(finder, _Lean) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Lean())
