"""What a domain's steps are handed, opened and closed by the worker beside its engine.

Each domain's services are a resource of their own. One that can't be opened holds the sagas of its
domain under ``resource_unavailable`` and is tried again; the others never notice.
"""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar, cast

import structlog

from evosaga.events import background
from evosaga.events.connection_errors import reason

_logger = structlog.get_logger("evosaga.resources")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_AT_THE_START: Final = 10.0
"""Seconds that a worker waits at its start for a resource to open; then it goes on without."""

ServicesT = TypeVar("ServicesT")


class ResourceUnavailable(Exception):
    """The services of a saga's domain are not open. Its text is for people, without secrets."""

    code: ClassVar[str] = "resource_unavailable"


class Resource(Generic[ServicesT]):
    """The services of one domain, opened in a task that also closes them.

    ``name`` is the domain's. ``work``, once it is given, runs beside the open services; what it
    raises closes them, and they are opened anew.
    """

    def __init__(
        self, name: str, open_services: Callable[[], AbstractAsyncContextManager[ServicesT]]
    ) -> None:
        self.name = name
        self.error: Exception | None = None
        """Why they could not be opened the last time."""
        self._open = open_services
        self._opened: tuple[ServicesT] | None = None
        self._tried = asyncio.Event()
        self._work: asyncio.Future[Callable[[ServicesT], Awaitable[None]]] = (
            asyncio.get_running_loop().create_future()
        )

    def get(self) -> ServicesT:
        """The open services. Raises ``ResourceUnavailable``."""
        if self._opened is None:
            why = f"({reason(self.error)})" if self.error else "yet"
            raise ResourceUnavailable(f"what {self.name} needs could not be opened {why}")
        return self._opened[0]

    def begin(self, work: Callable[[ServicesT], Awaitable[None]]) -> None:
        """Run ``work`` beside the services whenever they are open."""
        self._work.set_result(work)

    async def tried(self) -> None:
        """Wait until opening was tried once."""
        await self._tried.wait()

    async def run(self) -> None:
        """Keep them open, until it is cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._open() as services:
                    self._opened, self.error, pause = (services,), None, _FIRST_PAUSE
                    self._tried.set()
                    await (await asyncio.shield(self._work))(services)
                    await asyncio.Event().wait()
            except Exception as error:
                self.error = error
                _logger.warning(
                    "resource unavailable",
                    domain=self.name,
                    reason=reason(error),
                    at=_where(error),
                )
            finally:
                self._opened = None
            self._tried.set()
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)


def _where(error: Exception) -> str:
    """The file and line that raised, without the text, which may carry a password."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


@dataclass(frozen=True, slots=True)
class ServicesBySaga:
    """The services of several domains, by the name of the saga that is handed them."""

    by_saga: Mapping[str, Resource[object]]

    def of(self, saga: str) -> object:
        """Those of that saga. Raises ``ResourceUnavailable``."""
        return self.by_saga[saga].get()


def handed(services: object, saga: str) -> object:
    """What that saga's steps and admission are handed. Raises ``ResourceUnavailable``."""
    return services.of(saga) if isinstance(services, ServicesBySaga) else services


@contextlib.asynccontextmanager
async def opened(resources: Sequence[Resource[ServicesT]]) -> AsyncIterator[None]:
    """Keep them open while inside; each was tried once when this begins, or hangs."""
    tasks = [asyncio.create_task(one.run(), name=f"resource {one.name}") for one in resources]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AT_THE_START):
                for one in resources:
                    await one.tried()
        yield
    finally:
        await background.end(tasks)


def plainly(resource: Resource[ServicesT]) -> Resource[object]:
    """The same, for those who only hand it on."""
    return cast("Resource[object]", resource)
