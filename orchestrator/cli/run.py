"""The verbs ``migrate``, ``worker`` and ``simulate-evolution``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from evosaga.orchestrator.cli import connections, running_dev
from evosaga.orchestrator.cli import lazy_params as params
from evosaga.orchestrator.cli.doctor_postgres import require_writable, said_of
from evosaga.orchestrator.cli.errors import (
    DONE,
    UNFINISHED,
    UNREACHABLE,
    WRONG,
    CliError,
    explained,
    reaching_postgres,
)
from evosaga.orchestrator.cli.output import Output

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.orchestrator.config.settings import Settings

_NEEDED: Final = {
    "evolution_url": "set EVOSAGA_EVOLUTION_URL to your Evolution API server, https://…",
    "evolution_api_key": "set EVOSAGA_EVOLUTION_API_KEY to that server's global API key",
    "secret_key": "set EVOSAGA_SECRET_KEY to 32 bytes or more: openssl rand -hex 32",
}
_SOON: Final = 3.0
"""Seconds that a Redis may take to answer which is not needed at the start."""
_LAST_PORT: Final = 65535
_API_KEYS: Final = "set EVOSAGA_API_KEYS to name:key, the key from: openssl rand -hex 32"


def migrate(*, out: params.Out) -> int:
    """Bring the schema up to date."""
    with connections.servers(out, redis=False) as settings:
        before, after, notes = asyncio.run(migrated(settings))
    for note in notes:
        out.note(note)
    if out.json:
        out.data({"before": before, "after": after, "notes": notes})
    elif before == after:
        out.line(f"the schema is up to date ({after})")
    else:
        out.line(f"the schema was {before or 'missing'} and is {after} now")
    return DONE


async def migrated(settings: Settings) -> tuple[str | None, str, list[str]]:
    """Migrate; the revisions before and after, and which rows the integrations table keeps out."""
    import asyncpg

    from evosaga import migrations
    from evosaga.events.database import behind_pooler
    from evosaga.events.postgres_hosts import connect
    from evosaga.migrations.preflight import ReadOnly, Unfit
    from evosaga.orchestrator import app

    url = settings.database_url
    assert url is not None
    domains = app.domains_of(settings).each
    own = {one.name: one.migrations for one in domains if one.migrations is not None}
    whatsapp = app.has_whatsapp(settings)
    with reaching_postgres(url):
        await behind_pooler(url)  # which refuses one that knows no transactions
        connection = await connect(url, statement_cache_size=0, timeout=10)
        try:
            before = await migrations.current(connection)
        finally:
            await connection.close()
        if migrations.newer(before, migrations.head()):
            return before, str(before), []  # a newer release has been here
        try:
            notes = await migrations.migrate(url, whatsapp=whatsapp, domains=own)
        except Unfit as error:
            raise CliError(WRONG, f"can't migrate, nothing was changed: {error}") from error
        except ReadOnly as error:
            raise said_of(error, "can't migrate, nothing can be written there") from error
        except asyncpg.PostgresError as error:
            if error.sqlstate and error.sqlstate.startswith("P0"):  # a migration's own refusal
                cure = f" {error.hint}" if getattr(error, "hint", None) else ""
                # str(error) has the hint as well, on a line of its own.
                raise CliError(WRONG, f"can't migrate: {error.args[0]}.{cure}") from error
            raise
        except migrations.SchemaBusy as error:
            raise CliError(UNREACHABLE, f"can't migrate now: {error}") from error
    return before, migrations.head(), [str(note) for note in notes]


def worker(*, processes: params.Processes = 1, out: params.Out) -> int:
    """Carry out sagas until SIGTERM or Ctrl-C.

    Args:
        processes: so many workers, one a core; one that dies is started again. Each has a port
            for metrics of its own: EVOSAGA_METRICS_PORT and those behind it
    """
    require(out)
    with connections.servers(out) as settings:
        if processes == 1:
            return run_until_signal(settings, out)
        return _several(processes, settings, out)


def _several(number: int, settings: Settings, out: Output) -> int:
    """So many workers, each a process of its own."""
    first, last = settings.metrics_port, (settings.metrics_port or 0) + number - 1
    if first is not None and last > _LAST_PORT:
        said = f"{number} processes need the ports {first} to {last} for metrics"
        raise CliError(WRONG, f"{said}: set EVOSAGA_METRICS_PORT lower")
    asyncio.run(look_first(settings))
    from evosaga.orchestrator.cli.processes import Processes
    from evosaga.orchestrator.config import log_config

    log_config.configure(settings)

    def run(place: int) -> int:
        own = {"metrics_port": None if first is None else first + place}
        try:
            return run_until_signal(settings.model_copy(update=own), out)
        except Exception as error:
            trouble = error if isinstance(error, CliError) else explained(error)
            if trouble is None:
                raise
            out.problem(trouble.sentence)
            return trouble.code

    return Processes(number, run).supervise()


def require(out: Output, *, http: bool = False) -> None:
    """Refuse to start while settings are missing that have no embedded stand-in."""
    from evosaga.orchestrator import app

    settings = running_dev.settings()
    needed = dict(_NEEDED) if app.has_whatsapp(settings) else {}
    if http:
        needed |= {"api_keys": _API_KEYS, "secret_key": _NEEDED["secret_key"]}
    missing = [cure for name, cure in needed.items() if getattr(settings, name) is None]
    if not missing:
        return
    for cure in missing[:-1]:
        out.problem(cure)
    raise CliError(WRONG, f"{missing[-1]} (or try everything with `evosaga dev`)")


def run_until_signal(settings: Settings, out: Output) -> int:
    """A worker on these settings, until SIGTERM or SIGINT; a second signal ends it at once."""
    from evosaga.orchestrator import app

    asyncio.run(look_first(settings))
    from evosaga.orchestrator.config import (
        log_config,  # slow, so only once we know that it is worth it
    )

    log_config.configure(settings)
    try:
        asyncio.run(_work(settings))
    except app.Broken as error:
        out.problem(f"a part of the worker broke: {error}")
        return UNFINISHED
    return DONE


async def look_first(settings: Settings, *, redis: bool = True) -> None:
    """A look before the start, for a sentence that says which of them is not there."""
    from evosaga import migrations
    from evosaga.orchestrator import app

    async with contextlib.AsyncExitStack() as stack:
        client = await _redis(settings, stack, needed=redis)
        pool = await stack.enter_async_context(connections.postgres(settings))
        async with pool.acquire() as connection:
            try:
                await migrations.require_current(connection)
            except migrations.SchemaOutdated as error:
                raise CliError(WRONG, str(error)) from error
            if app.has_whatsapp(settings) and not await migrations.has_whatsapp(connection):
                said = "the database was migrated without WhatsApp: run `evosaga migrate`"
                raise CliError(WRONG, said)
            await require_writable(connection)
        if client is not None:
            from evosaga.orchestrator.maintenance import redis_owner

            await redis_owner.look(client, await redis_owner.identity(pool))


async def _redis(
    settings: Settings, stack: contextlib.AsyncExitStack, *, needed: bool
) -> Redis | None:
    """A Redis that can be used. None when it is not needed and not there, or not there for now."""
    from evosaga.orchestrator import app
    from evosaga.orchestrator.maintenance import redis_checks

    use = app.domains_of(settings).redis
    try:
        async with asyncio.timeout(None if needed else _SOON):
            client = await stack.enter_async_context(connections.redis(settings))
            await redis_checks.require(client, "worker" if needed else "api", use)
    except TimeoutError:
        return None
    except CliError as trouble:
        if needed or trouble.code != UNREACHABLE:
            raise
        return None
    return client


async def _work(settings: Settings) -> None:
    from evosaga.orchestrator import app

    stop = asyncio.Event()
    on_signals(stop.set)
    settle()
    await app.serve_until(stop, settings)


def settle() -> None:
    """For a process that runs for months: what was imported is never garbage.

    Looked through again and again, it costs a tenth of the time of a busy worker. The little
    garbage among it is kept as well: to find it once takes longer than to import asyncpg.
    New objects are looked through 5,000 at a time: 50,000 held the loop for up to 70 ms.
    """
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


def on_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` at the first SIGTERM or SIGINT; from then on they end the process at once."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first)


def simulate_evolution(
    *,
    port: params.Port = 0,
    host: params.Text = "127.0.0.1",
    journal: params.File = None,
    api_key: params.Key = None,
    version: Literal["2.3.6", "2.3.7"] = "2.3.7",
    pace: params.Factor = 1.0,
    global_webhook: params.Url | None = None,
    seed: params.Seed = 0,
    out: params.Out,
) -> int:
    """Run the simulated Evolution server alone.

    Args:
        port: default: a free one
        host: default: 127.0.0.1
        journal: append every request to it, one JSON a line
        api_key: the global key; made when left out
        version: of Evolution (default: 2.3.7)
        pace: scale of its waits: 1 as in real life (the default), 0 at once
        global_webhook: where it tells the events of all instances
        seed: what its chances and codes come from
    """
    from evosaga.orchestrator.local.evolution import main_simulate

    try:
        main_simulate(
            port,
            journal,
            api_key=api_key,
            as_json=out.json,
            host=host,
            version=version,
            pace=pace,
            global_webhook=global_webhook,
            seed=seed,
        )
    except OSError as error:
        where = f"port {port} or the journal {journal}"
        raise CliError(WRONG, f"can't use {where}: {error.strerror or error}") from error
    return DONE
