"""The verb ``reconcile``: show what drifted, and with ``--fix`` have it repaired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from uuid import UUID

from cyclopts import Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.reconcile_report import NotCompared, advise, described, draw, report
from evosaga.orchestrator.cli.run import require

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.reconciliation.confirmations import ObservedDrift
    from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
    from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Asked, Found, Reconciler
    from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep

_BETWEEN: Final = 1.5
"""Seconds between the two looks: what a saga is just doing is over by then, mostly."""
_POLL: Final = 0.1
_AT_ONCE: Final = 4


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
    if keep and not organization_id:
        raise CliError(WRONG, "--keep decides for one organization: give --organization-id as well")
    if remove and not fix:
        raise CliError(WRONG, "--remove is a repair: give --fix as well")
    require(out)
    wanted = _Wanted(organization_id, fix, keep, remove, timeout)
    with connections.servers(out) as settings:
        quiet(settings, out)
        return asyncio.run(_reconcile(settings, wanted, out))


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
    from evosaga.orchestrator.whatsapp.services import open_services

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        outside = await stack.enter_async_context(open_services(settings, pool, redis))
        gate = CommandHandler(pool, EventLog(pool), outside, app.registry())
        keeper = Reconciler(pool, outside, gate, settings.older_names, quiet=0.0)
        try:
            return await _Visit(keeper, _keep(wanted), wanted, out).pay()
        except UnknownChoice as wrong:
            raise CliError(WRONG, str(wrong)) from wrong
        except ObservationFailed as reason:
            raise CliError(UNREACHABLE, f"nothing was changed: {reason}") from reason


def _keep(wanted: _Wanted) -> Keep | None:
    from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep

    if not wanted.organization_id:
        return None
    return Keep(UUID(wanted.organization_id), wanted.keep or "connected")


@dataclass(slots=True)
class _Visit:
    """One run of the verb."""

    keeper: Reconciler
    keep: Keep | None
    wanted: _Wanted
    out: Output
    rest: NotCompared = field(default_factory=NotCompared)

    async def pay(self) -> int:
        """Look, tell, repair; the exit code."""
        seen = await self._look_twice()
        drifts = [sighting.drift for sighting in seen]
        self._check(drifts)
        if not self.wanted.fix:
            report(self.out, drifts, self.rest)
            return self._end(drifts)
        if not self.out.json:
            draw(drifts, self.out)
        repairs = await self._repair(seen)
        left = [sighting.drift for sighting in await self._look_twice()] if drifts else []
        before = [described(one) for one in drifts]
        report(self.out, left, self.rest, {"repairs": repairs, "before": before})
        return self._end(left)

    def _check(self, drifts: Sequence[Drift]) -> None:
        """Raise unless each instance to be removed is there and no row names it."""
        from evosaga.orchestrator.whatsapp.reconciliation.reconciler import removable

        known = removable(drifts)
        for name in self.wanted.remove:
            if name not in known:
                could = ", ".join(map(printable, known)) or "none"
                told = f"there is no {printable(name)} to remove; those that no row names: {could}"
                raise CliError(WRONG, told)

    def _end(self, drifts: Sequence[Drift]) -> int:
        """Say how to go on; the exit code. What was not looked at may be right or wrong."""
        if not self.out.json:
            advise(self.out, drifts, fixed=self.wanted.fix, one=self.keep is not None)
        return UNREACHABLE if self.rest.unseen else UNFINISHED if drifts else DONE

    async def _look_twice(self) -> list[ObservedDrift]:
        """What two looks saw. Only who repairs leaves a trace of what was seen."""
        from evosaga.orchestrator.whatsapp.reconciliation.confirmations import ObservedDrift
        from evosaga.orchestrator.whatsapp.reconciliation.reconciler import find

        first = await find(self.keeper, keep=self.keep)
        self.rest = NotCompared(first.unseen, first.strangers, first.busy)
        if not first.drifts:
            return []
        if self.wanted.fix:
            await self._note(first)
        await asyncio.sleep(_BETWEEN)
        before = {(drift.what, drift.where) for drift in first.drifts}
        second = await find(self.keeper, keep=self.keep)
        unseen = {**first.unseen, **second.unseen}
        self.rest = NotCompared(unseen, second.strangers, second.busy)
        if self.wanted.fix:
            noted = await self._note(second)
        else:
            now = _now()
            noted = [ObservedDrift(drift, now, 2, 0, True) for drift in second.drifts]
        return [one for one in noted if (one.drift.what, one.drift.where) in before]

    async def _note(self, found: Found) -> list[ObservedDrift]:
        from evosaga.orchestrator.whatsapp.reconciliation import confirmations
        from evosaga.orchestrator.whatsapp.reconciliation.reconciler import EVERYTHING

        organization = self.keep.organization_id if self.keep else None
        return await confirmations.note(
            *(self.keeper.pool, found.drifts),
            kinds=EVERYTHING,
            blind=found.blind,
            organization_id=organization,
            grace=0.0,
        )

    async def _repair(self, seen: Sequence[ObservedDrift]) -> list[dict[str, Any]]:
        """Ask for the repairs that are allowed, in two waves, and wait for them."""
        from evosaga.orchestrator.cli.integrations import workers
        from evosaga.orchestrator.whatsapp.reconciliation.reconciler import allowed

        await self._say_what_waits(seen)
        policies: Collection[Any] = {"auto", "ask"} if self.keep else {"auto"}
        mendable = [one for one in seen if allowed(one.drift, policies, self.wanted.remove)]
        company = await workers(self.keeper.pool, self.out) if mendable else None
        deadline = time.monotonic() + self.wanted.timeout
        told: list[dict[str, Any]] = []
        # What a row names is changed before what it no longer names is removed.
        for wave in (False, True):
            asked = await self._ask([one for one in mendable if one.drift.waits is wave])
            while asked and time.monotonic() < deadline:
                if await self._over(asked):
                    break
                if company is not None:
                    await company()
                await asyncio.sleep(_POLL)
            told += await self._outcomes(asked)
        return told

    async def _say_what_waits(self, seen: Sequence[ObservedDrift]) -> None:
        """That nothing is removed while the log is known to have gone back."""
        from evosaga.events import log_loss

        if seen and (await log_loss.recorded(self.keeper.pool)) is not None:
            self.out.problem(f"the log went back, so nothing is removed yet: {log_loss.RECOVER}")

    async def _ask(self, wanted: Sequence[ObservedDrift]) -> list[Asked]:
        from evosaga.orchestrator.whatsapp.reconciliation.reconciler import repair

        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(sighting: ObservedDrift) -> Asked | None:
            async with limit:
                return await repair(self.keeper, sighting)

        answers = await asyncio.gather(*(one(sighting) for sighting in wanted))
        return [answer for answer in answers if answer is not None]

    async def _over(self, asked: Sequence[Asked]) -> bool:
        open_ = await self.keeper.pool.fetchval(_ACTIVE, [one.saga_id for one in asked])
        return not open_

    async def _outcomes(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        ids = [one.saga_id for one in asked]
        rows = {row["saga_id"]: row for row in await self.keeper.pool.fetch(_OUTCOMES, ids)}
        told = []
        for one in asked:
            row, drift = rows[one.saga_id], one.sighting.drift
            told.append(
                {
                    "what": drift.what,
                    "where": drift.where,
                    "saga_id": str(one.saga_id),
                    "status": row["status"],
                    "message": row["message"],
                }
            )
            if not self.out.json:
                why = f": {row['message']}" if row["message"] else ""
                self.out.line(f"{drift.what} {drift.where}: {row['status']}{why}")
        return told


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


_ACTIVE: Final = """
SELECT count(*) FROM evosaga.open_sagas WHERE saga_id = ANY($1) AND status <> 'failed'
"""
_OUTCOMES: Final = """
SELECT saga_id, status, message FROM evosaga.sagas WHERE saga_id = ANY($1)
"""
