"""The verb ``qr``: the QR code to scan, in the terminal, renewed with ``--follow``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.show import clock

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.integrations.pairing import Pairing
    from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
    from evosaga.sagas.whatsapp.ownership import KeyRing

_EVERY: Final = 0.5
_PATIENCE: Final = 10.0
"""Seconds to wait for a first code."""
_OVER: Final = {
    "paired": DONE,
    "not_needed": DONE,
    "limit_reached": UNFINISHED,
}
"""States in which there is nothing to wait for, and the exit code of each."""


def qr(
    instance_name: params.InstanceName,
    /,
    *,
    follow: params.Follow = False,
    number: params.Digits | None = None,
    out: params.Out,
) -> int:
    """Show it; with ``--follow`` until the phone is connected.

    Args:
        follow: renew it until the phone is connected
    """
    with connections.servers(out) as settings:
        return asyncio.run(_qr(settings, instance_name, follow, number, out))


async def _qr(settings: Settings, name: str, follow: bool, number: str | None, out: Output) -> int:
    from evosaga.orchestrator.whatsapp.integrations.pairing import current_qr

    loop = asyncio.get_running_loop()
    patience = loop.time() + _PATIENCE
    shown: Pairing | None = None
    async with (
        connections.postgres(settings) as pool,
        connections.own_redis(settings, pool) as redis,
        _evolution(settings) as (servers, keys),
    ):
        while True:
            pairing = await current_qr(
                pool,
                redis,
                servers,
                keys,
                name,
                number=number,
                again=shown is None,  # a person is asking, at the beginning and not after that
                watching=follow,
            )
            if pairing.state == "absent":
                return await _absent(pool, pairing, name, out)
            if shown is None or (pairing.state, pairing.qr) != (shown.state, shown.qr):
                _show(pairing, name, out, follow=follow)
            shown = pairing
            if (code := _OVER.get(pairing.state)) is not None:
                return code
            if not follow and pairing.state == "qr":
                return DONE
            if not follow and loop.time() > patience:
                return UNREACHABLE if pairing.state == "unavailable" else UNFINISHED
            await asyncio.sleep(_EVERY)


@contextlib.asynccontextmanager
async def _evolution(
    settings: Settings,
) -> AsyncIterator[tuple[Mapping[str, EvolutionApi] | None, KeyRing | None]]:
    """The Evolution servers, if they are configured; what is in Redis can be shown without."""
    if not (settings.evolution_url and settings.evolution_api_key and settings.secret_key):
        yield None, None
        return
    from evosaga.orchestrator.config.settings import split_secrets
    from evosaga.orchestrator.whatsapp.services import evolution_servers
    from evosaga.sagas.whatsapp.ownership import KeyRing

    async with contextlib.AsyncExitStack() as stack:
        servers = evolution_servers(settings)
        for server in servers.values():
            await stack.enter_async_context(server)
        yield servers, KeyRing(split_secrets(settings.secret_key))


def _show(pairing: Pairing, name: str, out: Output, *, follow: bool) -> None:
    if out.json:
        out.data(
            {
                "instance_name": name,
                "state": pairing.state,
                "message": pairing.message,
                "qr_code": pairing.qr,
            }
        )
        return
    if pairing.qr is None:
        out.line(printable(f"{name}: {pairing.message}{_cure(pairing, name)}"))
        return
    from evosaga.orchestrator.cli.render import draw_qr

    if pairing.qr["pairing_code"]:
        out.line(printable(f"pairing code: {pairing.qr['pairing_code']}"))
    out.line(printable(f"{pairing.message}{', within a minute' if not follow else ''}:"))
    draw_qr(out, str(pairing.qr["code"]))


async def _absent(pool: Pool, pairing: Pairing, name: str, out: Output) -> int:
    """There is no instance to pair: say why, and what to do. The exit code."""
    code, sentence = await _whereabouts(pool, name)
    if out.json:
        _show(replace(pairing, message=sentence), name, out, follow=False)
        return code
    raise CliError(code, sentence)


async def _whereabouts(pool: Pool, name: str) -> tuple[int, str]:
    from evosaga.orchestrator.queries.sagas import find_saga
    from evosaga.orchestrator.whatsapp.integrations.queries import find_integration

    row = await find_integration(pool, name)
    if row is not None and row.status == "deleting":
        return UNFINISHED, f"{name} is being deleted; how far that is: evosaga status {name}"
    if row is not None:
        return UNFINISHED, (
            f"the instance {name} has vanished from Evolution, though its row is here. See: "
            f"evosaga reconcile --organization-id {row.organization_id}; or begin anew: "
            f"evosaga delete {name}"
        )
    view = await find_saga(pool, name)
    if view is None:
        return WRONG, f"no integration has the instance {name}. See what there is: evosaga list"
    if view.instance_name not in (None, name):
        return WRONG, f"{name} is a saga; its instance: evosaga qr {view.instance_name}"
    what = view.saga.removesuffix("-integration")
    if view.status == "completed" and what == "delete":
        return WRONG, f"{name} was deleted ({clock(view.updated_at)}), so there is nothing to pair"
    said = f"{name} is not there: the {what} of it is {view.status}"
    return (WRONG if view.over else UNFINISHED), f"{said}; why: evosaga why {view.saga_id}"


def _cure(pairing: Pairing, name: str) -> str:
    return f": evosaga qr {name}" if pairing.state == "limit_reached" else ""
