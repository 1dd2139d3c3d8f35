"""Where the servers are: given by the environment, or the embedded ones of the state folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli import running_dev
from evosaga.orchestrator.cli.errors import reaching_postgres, reaching_redis
from evosaga.orchestrator.cli.output import Output
from evosaga.sagas import whatsapp  # noqa: F401  # so old histories are read in today's words

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings


@contextlib.contextmanager
def servers(out: Output, *, redis: bool = True, join_dev: bool = True) -> Iterator[Settings]:
    """The settings, with the URL of a running server where none was given.

    ``join_dev``: what a running ``evosaga dev`` made completes them. Embedded servers are shared
    by all processes that use the same state folder, and stop with the last of them; what they
    store stays.
    """
    from evosaga.orchestrator.config.dotenv import overlooked
    from evosaga.orchestrator.config.settings import load_settings

    settings = running_dev.settings() if join_dev else load_settings()
    if remark := overlooked():
        out.note(f"evosaga: {remark}")
    with contextlib.ExitStack() as stack:
        found: dict[str, str] = {}
        if settings.database_url is None:
            from evosaga.orchestrator.local.paths import state_folder
            from evosaga.orchestrator.local.postgres import local_postgres

            found["database_url"] = stack.enter_context(local_postgres(state_folder())).url
        if redis and settings.redis_url is None:
            from evosaga.orchestrator.local.paths import state_folder
            from evosaga.orchestrator.local.valkey import local_valkey

            found["redis_url"] = stack.enter_context(local_valkey(state_folder())).url
        if found:
            out.note(_announcement(found))
            settings = settings.model_copy(update=found)
        yield settings


def _announcement(found: dict[str, str]) -> str:
    from evosaga.orchestrator.local.paths import state_folder

    names = {"database_url": "Postgres", "redis_url": "Valkey"}
    kinds = " and ".join(names[field] for field in found)
    variables = " and ".join(f"EVOSAGA_{field.upper()}" for field in found)
    return f"evosaga: using the embedded {kinds} in {state_folder()} ({variables} not set)"


@contextlib.asynccontextmanager
async def postgres(settings: Settings) -> AsyncIterator[Pool]:
    """A few connections to Postgres, or a sentence on why there are none."""
    from evosaga.events.database import open_pool

    assert settings.database_url is not None
    with reaching_postgres(settings.database_url):
        pool = await open_pool(settings.database_url, size=2)
    try:
        yield pool
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.close(), 5)


@contextlib.asynccontextmanager
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client of a Redis that answers, or a sentence on why there is none."""
    from evosaga.events import streams
    from evosaga.orchestrator.maintenance import redis_protocol

    assert settings.redis_url is not None
    with reaching_redis(settings.redis_url):
        await redis_protocol.require(settings.redis_url)
        client = streams.connect(settings.redis_url, settings.redis_prefix)
        try:
            await client.ping()
        except BaseException:
            await client.aclose()
            raise
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def own_redis(settings: Settings, pool: Pool) -> AsyncIterator[Redis]:
    """The same for verbs that write to it: it must be this database's. Raises ``RedisTaken``."""
    from evosaga.orchestrator.maintenance import redis_owner

    async with redis(settings) as client:
        await redis_owner.look(client, await redis_owner.identity(pool))
        yield client
