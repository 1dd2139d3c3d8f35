"""The verb ``reconcile``: show what drifted, and with ``--fix`` have it repaired."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import UUID

from cyclopts import Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.reconcile_report import advise, draw_described, report
from evosaga.orchestrator.cli.run import require

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
    from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler
    from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep
    from evosaga.orchestrator.whatsapp.reconciliation.visit import Visited


def reconcile(
    *,
    organization_id: params.Uuid | None = None,
    fix: bool = False,
    keep: Annotated[params.Text | None, Parameter(metavar="WHAT")] = None,
    remove: tuple[params.Name, ...] = (),
    timeout: params.Seconds = 120.0,
    out: params.Out,
) -> int:
    """Look twice, report, and repair what may be repaired.

    Args:
        organization_id: only what concerns this one
        fix: repair it
        keep: what the organization keeps: connected (the default), none, or an instance's NAME
        remove: with --fix: remove this instance, which no row names; may be given several times
        timeout: how long to wait for the repairs (default: 120); they go on after that
    """
    check_options(organization_id, fix=fix, keep=keep, remove=remove)
    require(out)
    wanted = _Wanted(organization_id, fix, keep, remove, timeout)
    with connections.servers(out) as settings:
        quiet(settings, out)
        return asyncio.run(_reconcile(settings, wanted, out))


def check_options(
    organization_id: str | None, *, fix: bool, keep: str | None, remove: Sequence[str]
) -> None:
    """Raises ``CliError`` for options that do not fit together."""
    if keep and not organization_id:
        raise CliError(WRONG, "--keep decides for one organization: give --organization-id as well")
    if remove and not fix:
        raise CliError(WRONG, "--remove is a repair: give --fix as well")


class _Wanted(NamedTuple):
    """The options."""

    organization_id: str | None
    fix: bool
    keep: str | None
    remove: Sequence[str]
    timeout: float


def quiet(settings: Settings, out: Output) -> None:
    """Log errors only: the verb itself reports the rest."""
    from evosaga.orchestrator.config import log_config

    level = settings.log_level if out.debug else "error"
    log_config.configure(settings.model_copy(update={"log_level": level}))


async def _reconcile(settings: Settings, wanted: _Wanted, out: Output) -> int:
    from evosaga.events.event_log import EventLog
    from evosaga.orchestrator import app
    from evosaga.orchestrator.commands.handler import CommandHandler
    from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
    from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler, UnknownChoice
    from evosaga.orchestrator.whatsapp.reconciliation.visit import NotRemovable
    from evosaga.orchestrator.whatsapp.services import open_services

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        outside = await stack.enter_async_context(open_services(settings, pool, redis))
        gate = CommandHandler(pool, EventLog(pool), outside, app.registry())
        keeper = Reconciler(pool, outside, gate, settings.older_names, quiet=0.0)
        try:
            visited = await _visit(keeper, wanted, out)
        except (UnknownChoice, NotRemovable) as wrong:
            raise CliError(WRONG, printable(str(wrong))) from wrong
        except ObservationFailed as reason:
            raise CliError(UNREACHABLE, f"nothing was changed: {reason}") from reason
    return tell(visited.document(), out, fixed=wanted.fix, one=wanted.organization_id is not None)


def _keep(wanted: _Wanted) -> Keep | None:
    from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep

    if not wanted.organization_id:
        return None
    return Keep(UUID(wanted.organization_id), wanted.keep or "connected")


async def _visit(keeper: Reconciler, wanted: _Wanted, out: Output) -> Visited:
    from evosaga.orchestrator.cli.integrations import workers
    from evosaga.orchestrator.whatsapp.reconciliation.reconciler import described
    from evosaga.orchestrator.whatsapp.reconciliation.visit import Visit

    async def found(drifts: Sequence[Drift], stopped: str | None) -> None:
        if not out.json:
            draw_described([described(drift) for drift in drifts], out)
        if stopped:
            out.problem(stopped)

    waiting = await workers(keeper.pool, out, at_once=False)
    visit = Visit(keeper, _keep(wanted), wanted.remove, wanted.timeout, found, waiting)
    return await (visit.fix() if wanted.fix else visit.look())


def tell(told: Mapping[str, Any], out: Output, *, fixed: bool, one: bool) -> int:
    """Say what was found and repaired, and how to go on; the exit code.

    What was not looked at may be right or wrong. ``one``: for one organization.
    """
    if not out.json:
        for repaired in told.get("repairs", ()):
            why = f": {repaired['message']}" if repaired["message"] else ""
            what, where, status = (repaired[name] for name in ("what", "where", "status"))
            out.line(printable(f"{what} {where}: {status}{why}"))
    report(out, told)
    if not out.json:
        advise(out, told["drifts"], fixed=fixed, one=one)
    return UNREACHABLE if told.get("not_looked_at") else UNFINISHED if told["drifts"] else DONE
