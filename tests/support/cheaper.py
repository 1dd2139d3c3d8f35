"""What tests in one process need not do again and again. Processes of their own do all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from fastapi import APIRouter, FastAPI
from faststream.redis.subscriber.usecases import stream_subscriber
from starlette.routing import BaseRoute

import evosaga.orchestrator.worker
from evosaga.events.database import open_pool
from evosaga.sagas.whatsapp.steps import instance_removal


@contextmanager
def routes_prepared_once() -> Iterator[None]:
    """FastAPI prepares every route at the first request to an app that includes its router, which
    takes longer than what most tests ask. The routers are the same for all apps of a process.
    """
    prepared: list[tuple[APIRouter, list[BaseRoute]]] = []
    include = FastAPI.include_router

    def include_as_before(self: FastAPI, router: APIRouter) -> None:
        for known, routes in prepared:
            if known is router:
                self.router.routes.extend(routes)
                return
        before = len(self.router.routes)
        include(self, router)
        prepared.append((router, self.router.routes[before:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastAPI, "include_router", include_as_before)
        yield


@contextmanager
def few_connections() -> Iterator[None]:
    """A worker holds four at most.

    The parts of one that starts all ask at once, so it would open eight, and each costs Postgres
    and us more than most sagas do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evosaga.orchestrator.worker, "open_pool", partial(open_pool, size=4))
        yield


@contextmanager
def reads_soon_again() -> Iterator[None]:
    """FastStream pauses five seconds after a read that failed, in which a test only waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_subscriber, "CONSUME_ERROR_BACKOFF_SECONDS", 0.5)
        yield


@contextmanager
def removals_looked_at_soon() -> Iterator[None]:
    """A delete that may have reached Evolution is given three seconds before the next one, in
    which a test of what comes after it only waits: the simulated Evolution is quicker.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance_removal, "_REMOVAL_SECONDS", 0.3)
        yield
