"""What a worker is given to run: one domain, as a record of its sagas and of a few functions.

The engine, the commands and the upkeep know sagas, events and commands; what a saga is about they
get from here. It lies above them, since some of its functions are called with settings, with the
command handler or with a lease.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from redis.asyncio import Redis

from evosaga.events.alerts import Condition
from evosaga.events.database import Pool
from evosaga.events.relay import OnRewind, nothing_else
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.maintenance.redis_checks import NOTHING_MORE, RedisUse
from evosaga.orchestrator.maintenance.scheduler import Job
from evosaga.sagas.explainer import PLAIN, Explainer
from evosaga.sagas.registry import SagaRegistry

if TYPE_CHECKING:
    from prometheus_client.core import Metric

ServicesT = TypeVar("ServicesT")


def _plain(_services: object) -> Explainer:
    return PLAIN


def _no_jobs(_: Settings, __: Pool, _services: object, _handler: CommandHandler) -> Sequence[Job]:
    return ()


def _no_parts(
    _: Pool, __: Redis, _services: object, _worker: str
) -> Mapping[str, Coroutine[Any, Any, None]]:
    return {}


async def _no_conditions(_: Pool) -> Sequence[Condition]:
    return ()


def _nothing_own(_services: object) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Domain(Generic[ServicesT]):
    """``sagas`` and ``open_services`` are all that a domain needs.

    ``open_services``: opens, for one worker, what its steps are handed (``StepContext.services``).
    Raises ``SettingsError`` for a setting that is missing. The lease keeps a worker that was
    paused for too long from acting: ask it before an effect.
    ``streams``: Redis streams of its own, to be kept as long as the events are.
    ``redis``: its keys and commands there, for the checks of access lists.
    ``on_rewind``: publishes its own events once more when Redis has lost what it was told.
    ``explain``: what it has to say of its sagas, for ``why`` and for timelines.
    ``jobs``: what is done now and then, by one worker at a time.
    ``conditions``: what Postgres knows to be wrong with what it is about, for alerts; asked by one
    process every few seconds.
    ``own_conditions``: what one process sees in its own services.
    ``metrics``: of its services in one process, for Prometheus.
    ``parts``: what runs in every worker beside its engine, by name; none of them ever ends.

    What older releases stored is no part of it, since histories are read without a domain too: the
    package of the sagas registers its upcasts (``evosaga.events.upcasting``).
    """

    sagas: SagaRegistry
    open_services: Callable[[Settings, Pool, Redis, Lease], AbstractAsyncContextManager[ServicesT]]
    streams: tuple[str, ...] = ()
    redis: RedisUse = NOTHING_MORE
    on_rewind: OnRewind = nothing_else
    explain: Callable[[ServicesT], Explainer] = _plain
    jobs: Callable[[Settings, Pool, ServicesT, CommandHandler], Sequence[Job]] = _no_jobs
    parts: Callable[[Pool, Redis, ServicesT, str], Mapping[str, Coroutine[Any, Any, None]]] = (
        _no_parts
    )
    metrics: "Callable[[ServicesT], Sequence[Metric]]" = _nothing_own
    conditions: Callable[[Pool], Awaitable[Sequence[Condition]]] = _no_conditions
    own_conditions: Callable[[ServicesT], Sequence[Condition]] = _nothing_own
