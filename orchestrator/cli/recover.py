"""The verb ``recover``: what a log that went back has forgotten, and with ``--fix`` begin anew."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.reconcile import quiet
from evosaga.orchestrator.cli.recover_report import draw, tell_end
from evosaga.orchestrator.cli.run import require

if TYPE_CHECKING:
    from evosaga.orchestrator.api.recovery_run import Place
    from evosaga.orchestrator.config.settings import Settings


def recover(
    *,
    fix: bool = False,
    timeout: params.Seconds = 120.0,
    out: params.Out,
) -> int:
    """Show what the log has forgotten; with ``--fix`` heal it, and begin a new epoch.

    Args:
        fix: take forgotten commands again, mend what is left outside, and go on in a new epoch
        timeout: how long to wait for the workers (default: 120)
    """
    require(out)
    with connections.servers(out) as settings:
        quiet(settings, out)
        return asyncio.run(_recover(settings, fix, timeout, out))


async def _recover(settings: Settings, fix: bool, timeout: float, out: Output) -> int:
    from evosaga.events import log_loss
    from evosaga.events.event_log import EventLog
    from evosaga.orchestrator import app
    from evosaga.orchestrator.api import recovery_run
    from evosaga.orchestrator.commands.handler import CommandHandler
    from evosaga.orchestrator.domain import open_domains
    from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        domains = app.domains_of(settings)
        opened = open_domains(domains, settings, pool, redis, None)
        _, services = await stack.enter_async_context(opened)
        gate = CommandHandler(pool, EventLog(pool), services, domains.sagas)
        place = recovery_run.Place(settings, pool, redis, domains, services.of, gate)
        # A plan changes nothing, not even that the loss is known.
        known = await (log_loss.notice(pool, redis) if fix else recovery_run.compared(pool, redis))
        try:
            seen = await recovery_run.plan(place, known)
            plan = seen.document()
            if not fix or not seen.wrong:
                return tell_plan(plan, seen.wrong, out)
            if not out.json:
                draw(plan, out)
            return tell_healed(plan, await _heal(place, seen, timeout, out), out)
        except recovery_run.CantLook as reason:
            raise CliError(UNREACHABLE, f"nothing was changed: {reason}") from reason
        except ObservationFailed as reason:
            raise CliError(UNREACHABLE, f"nothing was changed there: {reason}") from reason


async def _heal(place: Place, seen: Any, timeout: float, out: Output) -> dict[str, Any]:
    from evosaga.orchestrator.api.recovery_run import Recovery
    from evosaga.orchestrator.cli.integrations import workers

    company = await workers(place.pool, out, at_once=False)
    return (await Recovery(place, timeout, company).heal(seen)).document()


def tell_plan(plan: Mapping[str, Any], wrong: bool, out: Output) -> int:
    """Say what was forgotten; the exit code."""
    if out.json:
        out.data(dict(plan))
        return UNFINISHED if wrong else DONE
    draw(plan, out)
    if wrong:
        out.note("heal it, and go on in a new epoch: evosaga recover --fix")
    return UNFINISHED if wrong else DONE


def tell_healed(plan: Mapping[str, Any], done: Mapping[str, Any], out: Output) -> int:
    """Say what was done and what is left; the exit code."""
    if out.json:
        out.data({**plan, **done})
    else:
        tell_end(done, out)
    if done["begun"] is None:
        out.problem(
            "the commands are on the stream again, and no worker has taken them: start one "
            "(evosaga worker), then run evosaga recover --fix again; the stop is not lifted"
        )
        return UNFINISHED
    return UNFINISHED if done["left"] or done["lost_sagas"] else DONE
