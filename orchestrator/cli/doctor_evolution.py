"""The Evolution servers, as ``evosaga doctor`` finds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.errors import place
from evosaga.orchestrator.cli.output import printable

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.evolution_servers import EvolutionServer
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.sagas.whatsapp.evolution.answers import Answer

_TIMEOUT: Final = 5.0


async def check_evolution(settings: Settings) -> AsyncGenerator[Finding, None]:
    """Each server that is configured here: a line about its key and one about itself."""
    from evosaga.orchestrator.config.settings import servers_of
    from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

    known = servers_of(settings)
    if DEFAULT_SERVER not in known:
        cure = "a worker needs EVOSAGA_EVOLUTION_URL and EVOSAGA_EVOLUTION_API_KEY"
        yield Finding("evolution", "warn", "not configured here", cure)
    for name, server in known.items():
        async with aclosing(_look_at_server(name, server)) as look:
            async for finding in look:
                yield finding


async def _look_at_server(name: str, server: EvolutionServer) -> AsyncGenerator[Finding, None]:
    """As a worker's own client sees it: what is none of Evolution's answers is no "accepted"."""
    from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
    from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

    check, variables = "evolution", ("EVOSAGA_EVOLUTION_URL", "EVOSAGA_EVOLUTION_API_KEY")
    if name != DEFAULT_SERVER:
        check, variables = f"evolution {name}", ("EVOSAGA_EVOLUTION_SERVERS",) * 2
    where = place(server.url)
    async with EvolutionApi(
        server.url, server.api_key.get_secret_value(), timeout=_TIMEOUT
    ) as evolution:
        answer = await evolution.instances()
    if answer.status == 0:
        said = f"no answer at {where} ({answer.text})"
        yield Finding(check, "bad", said, f"is it up, and is {variables[0]} right?")
        return
    if answer.alien:
        yield _misfit(check, answer, where, variables[0])
        return
    version = await _evolution_version(server.url)
    yield _key_finding(f"{check} key", answer, where, variables, version)
    yield Finding(check, "ok", f"version {version or 'unknown'} at {where}")


def _misfit(check: str, answer: Answer, where: str, variable: str) -> Finding:
    """What the answer means, and the cure that goes with it."""
    from evosaga.sagas.whatsapp.evolution.answer_origin import cure_in

    cure = cure_in(answer.meaning) or f"check {variable}, and the server's own logs"
    said = printable(answer.told).removesuffix(f": {cure}")
    return Finding(check, "bad", f"{where} answered {said}", cure)


def _key_finding(
    check: str, answer: Answer, where: str, variables: tuple[str, str], version: str | None
) -> Finding:
    if answer.status == 401:
        return Finding(check, "bad", "refused", f"check {variables[1]}")
    if answer.status != 200 or answer.instances is None:
        return _misfit(check, answer, where, variables[0])
    number = len(answer.instances)
    if not number and version is None:
        said = f"{where} lists no instance, and does not say that it is an Evolution server"
        return Finding(check, "warn", said, f"is {variables[0]} right?")
    return Finding(check, "ok", f"accepted; {number} {'instance' if number == 1 else 'instances'}")


async def check_stranded(pool: Pool, known: list[str]) -> AsyncGenerator[Finding, None]:
    """Sagas whose Evolution server is not configured here: they wait until it is."""
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
      SELECT status, facts ->> 'server' FROM evosaga.open_sagas
      JOIN evosaga.saga_starts USING (saga_id)) AS found
WHERE server <> 'default' AND server <> ALL($1) GROUP BY server ORDER BY server LIMIT 20
"""


async def _evolution_version(url: str) -> str | None:
    """As ``GET /`` tells it, which needs no key; None where that is none of Evolution's."""
    import httpx

    try:
        async with (
            asyncio.timeout(_TIMEOUT),
            httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, trust_env=False) as http,
        ):
            body = (await http.get("/")).json()
        return printable(str(body["version"]))[:20]
    except (
        httpx.HTTPError,
        OSError,
        TimeoutError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):
        return None
