"""``evosaga qr``: the QR code to scan, in the terminal, renewed while somebody looks."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from orchestrator.cli import places
from orchestrator.cli.output import Output
from orchestrator.cli.trouble import DONE, UNFINISHED, UNREACHABLE, WRONG, Trouble

if TYPE_CHECKING:
    from orchestrator.config import Settings
    from orchestrator.pairing import Pairing
    from sagas.ownership import KeyRing
    from sagas.steps.evolution_api import EvolutionApi

_EVERY: Final = 0.5
_PATIENCE: Final = 10.0
"""Seconds to wait for a first code."""
_OVER: Final = {
    "paired": DONE,
    "not_needed": DONE,
    "limit_reached": UNFINISHED,
    "absent": WRONG,
}
"""States in which there is nothing to wait for, and the exit code of each."""


def qr(arguments: argparse.Namespace, out: Output) -> int:
    """Show it; with ``--follow`` until the phone is connected."""
    with places.servers(out) as settings:
        return asyncio.run(_qr(settings, arguments, out))


async def _qr(settings: Settings, arguments: argparse.Namespace, out: Output) -> int:
    from orchestrator.pairing import current_qr

    name, follow = arguments.instance_name, arguments.follow
    loop = asyncio.get_running_loop()
    patience = loop.time() + _PATIENCE
    shown: Pairing | None = None
    async with (
        places.postgres(settings) as pool,
        places.redis(settings) as redis,
        _evolution(settings) as (evolution, keys),
    ):
        while True:
            pairing = await current_qr(
                pool,
                redis,
                evolution,
                keys,
                name,
                number=arguments.number,
                again=shown is None,  # a person is asking, at the beginning and not after that
                watching=follow,
            )
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
) -> AsyncIterator[tuple[EvolutionApi | None, KeyRing | None]]:
    """Evolution, if it is configured here; what is in Redis can be shown without."""
    if not (settings.evolution_url and settings.evolution_api_key and settings.secret_key):
        yield None, None
        return
    from orchestrator.config import split_secrets
    from sagas.ownership import KeyRing
    from sagas.steps.evolution_api import EvolutionApi

    key = settings.evolution_api_key.get_secret_value()
    async with EvolutionApi(settings.evolution_url, key) as evolution:
        yield evolution, KeyRing(split_secrets(settings.secret_key))


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
    if pairing.state == "absent":
        raise Trouble(WRONG, f"{pairing.message}. See what there is: evosaga list")
    if pairing.qr is None:
        out.line(f"{name}: {pairing.message}{_cure(pairing, name)}")
        return
    from orchestrator.cli.picture import draw_qr

    if pairing.qr["pairing_code"]:
        out.line(f"pairing code: {pairing.qr['pairing_code']}")
    out.line(f"{pairing.message}{', within a minute' if not follow else ''}:")
    draw_qr(out, str(pairing.qr["code"]))


def _cure(pairing: Pairing, name: str) -> str:
    return f": evosaga qr {name}" if pairing.state == "limit_reached" else ""
