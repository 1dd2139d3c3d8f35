"""The Evolution servers, as ``evosaga doctor`` finds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from orchestrator.cli.finding import Finding
from orchestrator.cli.tables import printable
from orchestrator.cli.trouble import place

if TYPE_CHECKING:
    from events.database import Pool
    from orchestrator.config import Settings
    from orchestrator.servers import EvolutionServer

_TIMEOUT: Final = 5.0


async def look_at_evolution(settings: Settings) -> AsyncGenerator[Finding, None]:
    """Each server that is configured here: a line about its key and one about itself."""
    from orchestrator.config import servers_of
    from sagas.vocabulary import DEFAULT_SERVER

    known = servers_of(settings)
    if DEFAULT_SERVER not in known:
        cure = "a worker needs EVOSAGA_EVOLUTION_URL and EVOSAGA_EVOLUTION_API_KEY"
        yield Finding("evolution", "warn", "not configured here", cure)
    for name, server in known.items():
        async with aclosing(_look_at_server(name, server)) as look:
            async for finding in look:
                yield finding


async def _look_at_server(name: str, server: EvolutionServer) -> AsyncGenerator[Finding, None]:
    import httpx

    from sagas.vocabulary import DEFAULT_SERVER

    check, variables = "evolution", ("EVOSAGA_EVOLUTION_URL", "EVOSAGA_EVOLUTION_API_KEY")
    if name != DEFAULT_SERVER:
        check, variables = f"evolution {name}", ("EVOSAGA_EVOLUTION_SERVERS",) * 2
    where = place(server.url)
    headers = {"apikey": server.api_key.get_secret_value()}
    async with httpx.AsyncClient(base_url=server.url, timeout=_TIMEOUT, trust_env=False) as http:
        try:
            # The status is enough; the list itself may be megabytes.
            async with (
                asyncio.timeout(_TIMEOUT),  # httpx's own begins anew with every byte
                http.stream("GET", "/instance/fetchInstances", headers=headers) as answer,
            ):
                status = answer.status_code
                kind = answer.headers.get("content-type", "")
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            said = f"no answer at {where} ({type(error).__name__})"
            yield Finding(check, "bad", said, f"is it up, and is {variables[0]} right?")
            return
        if status == 200 and "json" not in kind:
            said = (
                f"{where} answers with {printable(kind) or 'something'}, which Evolution never does"
            )
            yield Finding(check, "bad", said, f"is {variables[0]} right?")
            return
        yield _key_finding(f"{check} key", status, where, variables)
        yield Finding(check, "ok", f"version {await _evolution_version(http)} at {where}")


def _key_finding(check: str, status: int, where: str, variables: tuple[str, str]) -> Finding:
    if status == 200:
        return Finding(check, "ok", "accepted")
    if status in (401, 403):
        return Finding(check, "bad", "refused", f"check {variables[1]}")
    cure = f"check {variables[0]}, and the server's own logs and licence"
    return Finding(check, "bad", f"{where} answered HTTP {status}", cure)


async def look_for_stranded(pool: Pool, known: list[str]) -> AsyncGenerator[Finding, None]:
    """What is on servers that nobody has configured here: it waits until somebody does."""
    for row in await pool.fetch(_STRANDED, known):
        said = f"not configured; {row['integrations']} integrations and {row['sagas']} open sagas"
        said += " are on it"
        if row["undoing"]:
            said += f", of which {row['undoing']} wait to be undone and hold their organizations"
        cure = (
            "put it back into EVOSAGA_EVOLUTION_SERVERS, wherever workers run; if it is gone for "
            "good, put an empty server there under its name"
        )
        yield Finding(f"evolution {printable(row['server'])}", "bad", said, cure)


_STRANDED: Final = """
SELECT server, count(*) FILTER (WHERE what = 'row') AS integrations,
       count(*) FILTER (WHERE what <> 'row') AS sagas,
       count(*) FILTER (WHERE what = 'compensating') AS undoing
FROM (SELECT 'row' AS what, config ->> 'server' AS server FROM healthcare.integrations
      WHERE type = 'whatsapp' AND provider = 'evolution'
      UNION ALL
      SELECT status, born.data -> 'facts' ->> 'server' FROM evosaga.sagas
      JOIN evosaga.saga_events AS born USING (saga_id)
      WHERE sagas.status IN ('running', 'compensating', 'failed') AND born.sequence = 0) AS found
WHERE server <> 'default' AND server <> ALL($1) GROUP BY server ORDER BY server LIMIT 20
"""


async def _evolution_version(http: object) -> str:
    import httpx

    assert isinstance(http, httpx.AsyncClient)
    try:
        async with asyncio.timeout(_TIMEOUT):
            body = (await http.get("/")).json()
        return str(body["version"])[:20]
    except (httpx.HTTPError, OSError, TimeoutError, ValueError, KeyError, TypeError):
        return "unknown"
