"""The verb ``health``: how every integration is connected, and reconnecting what can be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.reconcile import quiet
from evosaga.orchestrator.cli.reconcile_report import tell_unseen
from evosaga.orchestrator.cli.run import require

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings

_FEW: Final = 40


def health(
    *,
    fix: bool = False,
    out: params.Out,
) -> int:
    """Look at all of them, and with ``--fix`` do what can be done.

    Args:
        fix: let rows follow what was seen, and connect again what can be
    """
    require(out)
    with connections.servers(out) as settings:
        quiet(settings, out)
        return asyncio.run(_health(settings, fix, out))


async def _health(settings: Settings, fix: bool, out: Output) -> int:
    from evosaga.orchestrator.whatsapp.health import fix as asked
    from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, examine
    from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
    from evosaga.orchestrator.whatsapp.services import open_services

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        outside = await stack.enter_async_context(open_services(settings, pool, redis))
        doctor = HealthMonitor(pool, outside, settings.alert_after, settings.alert_url is not None)
        try:
            done = await (asked.fix(doctor) if fix else examine(doctor, eager=True))
        except ObservationFailed as reason:
            raise CliError(UNREACHABLE, f"nothing was changed: {reason}") from reason
        except asked.NotSeenAgain as said:
            raise CliError(UNREACHABLE, str(said)) from said
        told = await asked.document(doctor, done)
    return tell(told, done.unseen, out)


def tell(told: Mapping[str, Any], unseen: Mapping[str, str], out: Output) -> int:
    """Say how they are, as ``--json`` has it; the exit code."""
    ill = [one for one in told["integrations"] if not one["well"]]
    code = UNREACHABLE if unseen else UNFINISHED if ill else DONE
    if out.json:
        out.data(dict(told))
        return code
    tell_unseen(unseen, out)
    tell_connections(told["integrations"], told["summary"]["states"], out)
    return code


def tell_connections(
    told: Sequence[Mapping[str, Any]], states: Mapping[str, int], out: Output
) -> None:
    """Each integration, or only those that are not well where there are many; then all counted."""
    ill = [one for one in told if not one["well"]]
    shown = sorted(
        told if len(told) <= _FEW else ill, key=lambda one: (one["well"], one["instance"])
    )
    out.table(
        [{n: str(v or "") for n, v in one.items() if n not in ("well", "id")} for one in shown],
        wrap=("name", "cure"),
    )
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    number = "1 integration" if len(told) == 1 else f"{len(told)} integrations"
    out.line(f"{number}: {counts}" if told else "there are no integrations")
