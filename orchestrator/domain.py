"""What a worker is given to run: domains, each a record of its sagas and of a few functions.

The engine, the commands and the upkeep know sagas, events and commands; what a saga is about they
get from here. It lies above them, since some of its functions are called with settings, with the
command handler or with a lease.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog
from redis.asyncio import Redis

from evosaga.events.alerts import Condition, FindConditions
from evosaga.events.database import Pool, Queryable
from evosaga.events.relay import OnRewind, nothing_else
from evosaga.orchestrator.commands.forgotten import ForgottenSaga, Leftover
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.resources import (
    Resource,
    ResourceUnavailable,
    ServicesBySaga,
    opened,
)
from evosaga.orchestrator.maintenance.redis_rights import NOTHING_MORE, RedisUse
from evosaga.orchestrator.maintenance.scheduler import AnyJob
from evosaga.sagas.definition import DefinitionError, Saga, limited
from evosaga.sagas.explainer import PLAIN, Explainer
from evosaga.sagas.limits import Limit
from evosaga.sagas.registry import SagaRegistry, merged, registry_of

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_logger = structlog.get_logger("evosaga.domain")
ServicesT = TypeVar("ServicesT")
ToldT = TypeVar("ToldT")


def _plain(_services: object) -> Explainer:
    return PLAIN


def _no_jobs(
    _: Settings, __: Pool, _services: object, _handler: CommandHandler
) -> Sequence[AnyJob]:
    return ()


def _no_parts(
    _: Pool, __: Redis, _services: object, _worker: str
) -> Mapping[str, Coroutine[Any, Any, None]]:
    return {}


async def nothing_left(
    _: Settings, __: Pool, _services: object, _handler: CommandHandler, ___: Sequence[ForgottenSaga]
) -> Sequence[Leftover]:
    """Of a domain whose sagas leave nothing outside that could be found."""
    return ()


async def _no_conditions(_: Pool) -> Sequence[Condition]:
    return ()


def _nothing_own(_services: object) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Domain(Generic[ServicesT]):
    """``sagas`` and ``open_services`` are all that a domain needs.

    ``open_services``: opens, for one worker, what its steps are handed (``StepContext.services``).
    While it raises, the domain's sagas are held under ``resource_unavailable`` and it is called
    again. The lease keeps a worker that was paused for too long from acting: ask it before an
    effect. None: a process that only looks, and drives no saga. ``essential``: without its services
    a worker does not start at all.
    ``name`` and ``package``: for people; what has no package is evosaga's own.
    ``streams``: Redis streams of its own, to be kept as long as the events are.
    ``redis``: its keys and commands there, for the checks of access lists.
    ``on_rewind``: publishes its own events once more when Redis has lost what it was told.
    ``explain``: what it has to say of its sagas, for ``why`` and for timelines.
    ``jobs``: what is done now and then, by one worker at a time, or in parts that workers share.
    ``conditions``: what Postgres knows to be wrong with what it is about, for alerts; asked by one
    process every few seconds. ``codes``: every code that they may have; an alert of one of these is
    over when it is no longer among the conditions.
    ``own_conditions``: what one process sees in its own services.
    ``metrics``: of its services in one process, for Prometheus.
    ``leftovers``: what sagas that a log has forgotten which went back left behind outside, and the
    commands that mend it, for ``evosaga recover``.
    ``parts``: what runs in every worker beside its engine, by name; none of them ever ends.

    What older releases stored is no part of it, since histories are read without a domain too: the
    package of the sagas registers its upcasts (``evosaga.events.upcasting``).
    """

    sagas: SagaRegistry
    open_services: Callable[
        [Settings, Pool, Redis, Lease | None], AbstractAsyncContextManager[ServicesT]
    ]
    streams: tuple[str, ...] = ()
    redis: RedisUse = NOTHING_MORE
    on_rewind: OnRewind = nothing_else
    explain: Callable[[ServicesT], Explainer] = _plain
    jobs: Callable[[Settings, Pool, ServicesT, CommandHandler], Sequence[AnyJob]] = _no_jobs
    parts: Callable[[Pool, Redis, ServicesT, str], Mapping[str, Coroutine[Any, Any, None]]] = (
        _no_parts
    )
    metrics: "Callable[[ServicesT], Sequence[Metric]]" = _nothing_own
    conditions: FindConditions = _no_conditions
    codes: tuple[str, ...] = ()
    own_conditions: Callable[[ServicesT], Sequence[Condition]] = _nothing_own
    leftovers: Callable[
        [Settings, Pool, ServicesT, CommandHandler, Sequence[ForgottenSaga]],
        Awaitable[Sequence[Leftover]],
    ] = nothing_left
    name: str = "domain"
    package: str = "evosaga"
    essential: bool = False
    migrations: Path | None = None
    """A folder with Alembic revisions of its own: a branch beside evosaga's."""

    def __post_init__(self) -> None:
        if self.conditions is not _no_conditions and not self.codes:
            raise DefinitionError(
                f"the domain {self.name} has conditions and no codes: name the codes that they have"
            )


def domain(
    name: str,
    *sagas: Saga[Any, ServicesT],
    services: Callable[[], AbstractAsyncContextManager[ServicesT]] | None = None,
    migrations: Path | None = None,
    limits: Sequence[Limit] = (),
) -> Domain[ServicesT]:
    """A domain of its own package: its sagas, and how to open what their steps use.

    ``services`` is called once in each worker and closed with it; what it yields is the
    ``ctx.services`` of every step. ``limits``: where each attempt of its steps needs a place,
    beside those of the step itself. Raises ``DefinitionError`` when two sagas have one version or
    one command.
    """
    sagas = tuple(limited(saga, limits) for saga in sagas) if limits else sagas

    @contextlib.asynccontextmanager
    async def open_services(
        _: Settings, __: Pool, ___: Redis, ____: Lease | None
    ) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as stack:
            yield await stack.enter_async_context(services()) if services else None

    return Domain(registry_of(sagas), open_services, name=name, package=name, migrations=migrations)


@dataclass(frozen=True)
class Domains:
    """Several domains side by side, and what they are together."""

    each: tuple[Domain[Any], ...]
    sagas: SagaRegistry

    @staticmethod
    def of(*each: Domain[Any]) -> "Domains":
        """Raises ``DefinitionError`` where two packages have one saga or one command.

        And where two domains with migrations have one name, which is that of their version table.
        """
        named = [one.name for one in each if one.migrations is not None]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise DefinitionError(
                f"two domains with migrations are named {twice[0]!r}: rename one of them"
            )
        return Domains(each, merged([(one.package, one.sagas) for one in each]))

    @property
    def streams(self) -> tuple[str, ...]:
        """Their Redis streams."""
        return tuple(stream for one in self.each for stream in one.streams)

    @property
    def redis(self) -> RedisUse:
        """Their keys and commands in Redis."""
        used = [one.redis for one in self.each]
        return RedisUse(
            tuple(name for use in used for name in use.names),
            tuple(command for use in used for command in use.always),
            tuple(command for use in used for command in use.of_worker),
        )

    async def on_rewind(self, pool: Queryable, since: datetime) -> None:
        """Let each publish once more what Redis has lost."""
        for one in self.each:
            await one.on_rewind(pool, since)

    def of_saga(self, saga: str) -> Domain[Any] | None:
        """The domain that has that saga; None: it is not installed here."""
        for one in self.each:
            if any(saga == name for name, _ in one.sagas.versions):
                return one
        return None

    @property
    def conditions(
        self,
    ) -> list[tuple[Sequence[str], FindConditions]]:
        """What finds each one's conditions, behind the codes that they may have."""
        return [(one.codes, one.conditions) for one in self.each]

    def of_open(
        self,
        services: ServicesBySaga,
        told: "Callable[[Domain[Any]], Callable[[Any], Sequence[ToldT]]]",
    ) -> "list[ToldT]":
        """What each tells of its services in this process, if they are open."""
        found: list[ToldT] = []
        for one in self.each:
            try:
                name = next(name for name, _ in one.sagas.versions)
                found += told(one)(services.of(name))
            except (ResourceUnavailable, StopIteration):
                continue
            except Exception as error:
                _failed("metrics or conditions", one, error)
        return found


def _failed(what: str, one: Domain[Any], error: Exception) -> None:
    _logger.error("domain_task_failed", what=what, domain=one.name, error=type(error).__name__)


@contextlib.asynccontextmanager
async def open_domains(
    domains: Domains, settings: Settings, pool: Pool, redis: Redis, lease: Lease | None
) -> AsyncIterator[tuple[list[Resource[Any]], ServicesBySaga]]:
    """Each domain's services, in order, and all of them by saga.

    Raises what an essential one raises; another that can't be opened is tried again meanwhile.
    """
    resources = []
    for one in domains.each:
        open_services = partial(one.open_services, settings, pool, redis, lease)
        resources.append(Resource(one.package, open_services))
    by_saga = {
        name: resource
        for one, resource in zip(domains.each, resources, strict=True)
        for name, _ in one.sagas.versions
    }
    async with opened(resources):
        for one, resource in zip(domains.each, resources, strict=True):
            if one.essential and resource.error is not None:
                raise resource.error
        yield resources, ServicesBySaga(by_saga)
