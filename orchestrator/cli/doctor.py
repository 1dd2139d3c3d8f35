"""The verb ``doctor``: check everything evosaga depends on, and name the cure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Literal

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.doctor_blocking import check_blocking
from evosaga.orchestrator.cli.doctor_environment import check_variables
from evosaga.orchestrator.cli.doctor_evolution import check_evolution, check_stranded
from evosaga.orchestrator.cli.doctor_instances import check_instances
from evosaga.orchestrator.cli.doctor_postgres import check_appends, check_database
from evosaga.orchestrator.cli.doctor_receivers import check_receivers
from evosaga.orchestrator.cli.doctor_redis import check_redis
from evosaga.orchestrator.cli.doctor_replication import check_copies, check_hosts
from evosaga.orchestrator.cli.doctor_secret_keys import check_secret_keys
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, CliError, explained
from evosaga.orchestrator.cli.output import Output, printable

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.queries.attention import Problem

_OLDEST_POSTGRES: Final = 15
_LATE: Final = 1000
"""So many events or commands behind is worth a word."""


def doctor(
    *,
    show_secrets: bool = False,
    out: params.Out,
) -> int:
    """Look, tell, and answer with the worst that was found.

    Args:
        show_secrets: show the address of the global webhook whole, with its token
    """
    from evosaga.orchestrator.config import log_config

    with connections.servers(out) as settings:
        if not out.debug:  # what would be log lines elsewhere is told here
            log_config.configure(settings.model_copy(update={"log_level": "critical"}))
        return asyncio.run(_doctor(settings, show_secrets, out))


async def _doctor(settings: Settings, show_secrets: bool, out: Output) -> int:
    from evosaga.orchestrator import app

    findings: list[Finding] = []
    unreachable = False
    looks = {
        "postgres": _look_at_postgres(settings),
        "redis": check_redis(settings),
        "evolution": check_evolution(settings),
        "instances": check_instances(settings, findings),
        "keys": _look_at_keys(settings),
        "webhooks": _look_at_webhooks(settings, show_secrets),
        "variables": check_variables(),
    }
    if not app.has_whatsapp(settings):
        for name in ("evolution", "instances", "webhooks"):
            await looks.pop(name).aclose()
    for name, look in looks.items():
        # Closed here and now when telling fails: a look that is left open, with its connection,
        # is otherwise closed by the event loop, at its end and too late.
        async with aclosing(_found_by(name, look)) as found:
            async for finding, away in found:
                unreachable = unreachable or away
                findings.append(finding)
                if not out.json:
                    _tell(finding, out)
    bad = any(finding.verdict == "bad" for finding in findings)
    if out.json:
        out.data({"healthy": not bad, "checks": [asdict(finding) for finding in findings]})
    return UNREACHABLE if unreachable else UNFINISHED if bad else DONE


async def _found_by(
    name: str, look: AsyncGenerator[Finding, None]
) -> AsyncGenerator[tuple[Finding, bool], None]:
    """What a look finds, trouble among it, and whether that is a server out of reach."""
    try:
        async with aclosing(look):
            async for finding in look:
                yield finding, False
    except Exception as error:
        # The rest is looked at all the same, and --json tells everything or nothing.
        trouble = error if isinstance(error, CliError) else explained(error)
        if trouble is None:
            raise
        yield Finding(name, "bad", trouble.sentence), trouble.code == UNREACHABLE


def _tell(finding: Finding, out: Output) -> None:
    cure = f"\n{'':<22}{finding.cure}" if finding.cure else ""
    if not out.terminal:
        out.line(f"{finding.verdict:<6}{finding.check:<15} {finding.said}{cure}")
        return
    from rich.text import Text

    mark, style = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "bad": ("✗", "bold red")}[
        finding.verdict
    ]
    out.console.print(
        Text.assemble(
            (f" {mark}    ", style), (f"{finding.check:<15} ", "bold"), finding.said, cure
        )
    )


# --- Postgres ---------------------------------------------------------------------------------


async def _look_at_postgres(settings: Settings) -> AsyncGenerator[Finding, None]:
    from evosaga import migrations
    from evosaga.orchestrator import app
    from evosaga.orchestrator.config.settings import servers_of

    async with connections.postgres(settings) as pool:
        number = int(await pool.fetchval("SHOW server_version_num")) // 10000
        version = await pool.fetchval("SHOW server_version")
        old = number < _OLDEST_POSTGRES
        cure = f"evosaga needs Postgres {_OLDEST_POSTGRES} or newer" if old else ""
        yield Finding("postgres", "bad" if old else "ok", f"Postgres {version}", cure)
        assert settings.database_url is not None
        async for finding in check_hosts(settings.database_url):
            yield finding
        async for finding in check_copies(pool, settings):
            yield finding

        async with pool.acquire() as connection:
            found, needed = await migrations.current(connection), migrations.head()
        if found != needed and not migrations.newer(found, needed):
            said = f"the schema is {found or 'missing'}, this release needs {needed}"
            yield Finding("schema", "bad", said, "run: evosaga migrate")
            return
        ahead = "" if found == needed else ", which a newer release has made"
        yield Finding("schema", "ok", f"revision {found}{ahead}")
        async for finding in check_appends(pool):
            yield finding
        if not app.has_whatsapp(settings):
            async for finding in _look_at_sagas(pool):
                yield finding
            async for finding in check_receivers(pool, settings):
                yield finding
            async for finding in check_blocking(pool):
                yield finding
            return
        async for finding in check_database(pool):
            yield finding
        async for finding in _look_at_work(pool):
            yield finding
        async for finding in check_stranded(pool, list(servers_of(settings))):
            yield finding
        async for finding in check_secret_keys(pool, settings):
            yield finding
        async for finding in check_receivers(pool, settings):
            yield finding
        async for finding in check_blocking(pool):
            yield finding


async def _look_at_sagas(pool: Pool) -> AsyncGenerator[Finding, None]:
    """What is wrong where WhatsApp is not run."""
    from evosaga.orchestrator.queries import attention

    now = await attention.situation(pool)
    found = [*attention.of_sagas(now), *attention.of_events(now)]
    yield Finding("workers", "ok" if now.workers else "warn", f"{now.workers} alive")
    for one in found:
        if one.code != "workers":
            yield Finding(one.code, _verdict(one), printable(one.said), one.cure)


async def _look_at_work(pool: Pool) -> AsyncGenerator[Finding, None]:
    """The same list as the first page has; a warning each, since the servers are well."""
    from evosaga.orchestrator.whatsapp.attention import problems, situation

    now = await situation(pool)
    found = {one.code: one for one in problems(now)}
    well = {
        "workers": ("workers", f"{now.workers} alive"),
        "parked": ("sagas", f"none parked, {now.active} under way"),
        "phones": ("phones", "none is known to be away"),
        "drift": ("drift", "none is known"),
        "relay": ("relay", f"{now.unrelayed} events not yet on the stream evosaga:events"),
    }
    for code, (check, said) in well.items():
        if (one := found.pop(code, None)) is None:
            yield Finding(check, "ok", said)
        else:
            under_way = f", {now.active} under way" if code == "parked" else ""
            yield Finding(check, "warn", f"{printable(one.said)}{under_way}", one.cure)
    for code, one in found.items():
        yield Finding(code, _verdict(one), printable(one.said), one.cure)


def _verdict(one: Problem) -> Literal["warn", "bad"]:
    """Nothing can be trusted while the log lacks what was published; the rest goes on."""
    return "bad" if one.code == "log_went_back" else "warn"


# --- the API's keys ---------------------------------------------------------------------------


async def _look_at_keys(settings: Settings) -> AsyncGenerator[Finding, None]:
    from evosaga.orchestrator.config.api_keys import SHORT, read_api_keys

    if settings.api_keys is None:
        cure = "`evosaga serve` and `evosaga api` need EVOSAGA_API_KEYS: name:key, comma separated"
        yield Finding("api keys", "warn", "none configured here", cure)
        return
    keys = read_api_keys(settings.api_keys.get_secret_value())
    bound = sum(key.organization_id is not None for key in keys)
    said = f"{len(keys)}, of which {bound} see one organization only"
    short = ", ".join(key.name for key in keys if key.short)
    cure = f"shorter than {SHORT} characters: {short}; make one: openssl rand -hex 32"
    yield Finding("api keys", "warn" if short else "ok", said, cure if short else "")


# --- webhooks in ------------------------------------------------------------------------------


async def _look_at_webhooks(
    settings: Settings, show_secrets: bool
) -> AsyncGenerator[Finding, None]:
    if settings.public_url is None:
        said = "off: a phone that is paired or lost is noticed by the health check alone"
        cure = "set EVOSAGA_PUBLIC_URL to where Evolution reaches `evosaga serve`, https://…"
        yield Finding("webhooks", "warn", said, cure)
        return
    at = f"{settings.public_url}/webhooks/evolution"
    yield Finding("webhooks", "ok", f"new instances deliver to {at}/…")
    if settings.secret_key is not None:
        from evosaga.orchestrator.config.settings import split_secrets
        from evosaga.sagas.whatsapp.ownership import KeyRing

        token = KeyRing(split_secrets(settings.secret_key)).global_webhook_tokens()[0]
        shown = token if show_secrets else "…   (whole: evosaga doctor --show-secrets)"
        cure = f"if you want it, on the Evolution server: WEBHOOK_GLOBAL_URL={at}?token={shown}"
        yield Finding("global webhook", "ok", "for instances whose own leads elsewhere", cure)
