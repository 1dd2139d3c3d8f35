"""The verb ``recover``: what a log that went back has forgotten, and with ``--fix`` begin anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.reconcile import quiet
from evosaga.orchestrator.cli.recover_report import described, draw, tell_end
from evosaga.orchestrator.cli.run import require

if TYPE_CHECKING:
    from uuid import UUID

    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.events.log_loss import Comparison
    from evosaga.orchestrator.commands.forgotten import Forgotten, Leftover
    from evosaga.orchestrator.commands.handler import CommandHandler
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.domain import Domains
    from evosaga.orchestrator.engine.resources import ServicesBySaga

_POLL: Final = 0.1


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
        place = _Place(settings, pool, redis, domains, services, gate)
        # A plan changes nothing, not even that the loss is known.
        known = await (log_loss.notice(pool, redis) if fix else _compared(pool, redis))
        try:
            return await _Recovery(place, known, timeout, out).run(fix=fix)
        except ObservationFailed as reason:
            raise CliError(UNREACHABLE, f"nothing was changed there: {reason}") from reason


async def _compared(pool: Pool, redis: Redis) -> Comparison:
    from evosaga.events import log_loss
    from evosaga.events.log_loss import Comparison

    if (loss := await log_loss.recorded(pool)) is not None:
        return Comparison(await log_loss.epoch(pool), loss)
    return await log_loss.compare(pool, redis)


@dataclass(frozen=True, slots=True)
class _Place:
    """What is recovered, and with what."""

    settings: Settings
    pool: Pool
    redis: Redis
    domains: Domains
    services: ServicesBySaga
    gate: CommandHandler

    async def look(self) -> tuple[Forgotten, list[Leftover]]:
        """What was forgotten, and what of it is left outside."""
        from evosaga.orchestrator.commands import forgotten
        from evosaga.orchestrator.domain import nothing_left
        from evosaga.orchestrator.engine.resources import ResourceUnavailable

        found = await forgotten.look(self.pool, self.redis, self.domains.sagas)
        left: list[Leftover] = []
        for one in self.domains.each:
            if one.leftovers is nothing_left:
                continue
            try:
                services = self.services.of(next(name for name, _ in one.sagas.versions))
            except ResourceUnavailable as reason:
                said = f"what {one.name} uses can't be opened: {reason}"
                raise CliError(UNREACHABLE, f"nothing was changed: {said}") from reason
            asked = one.leftovers(self.settings, self.pool, services, self.gate, found.sagas)
            left += await asked
        return found, left


@dataclass(slots=True)
class _Recovery:
    """One run of the verb."""

    place: _Place
    known: Comparison
    timeout: float
    out: Output
    repairs: list[dict[str, Any]] = field(default_factory=list)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout

    async def run(self, *, fix: bool) -> int:
        """Look, tell, heal; the exit code."""
        found, left = await self.place.look()
        plan = described(self.known, found, left)
        if not self.out.json:
            draw(plan, self.out)
        wrong = self.known.loss is not None or bool(found.commands) or bool(left)
        if not fix or not wrong:
            if self.out.json:
                self.out.data(plan)
            elif wrong:
                self.out.note("heal it, and go on in a new epoch: evosaga recover --fix")
            return UNFINISHED if wrong else DONE
        return await self._heal(plan, found, left)

    async def _heal(self, plan: dict[str, Any], found: Forgotten, left: Sequence[Leftover]) -> int:
        from evosaga.events import log_loss

        if not await self._take_again(found):
            self._report(plan, None, left)
            self.out.problem(
                "the commands are on the stream again, and no worker has taken them: start one "
                "(evosaga worker), then run evosaga recover --fix again; the stop is not lifted"
            )
            return UNFINISHED
        # A saga that was taken again has found its own instance by now, so look anew.
        after, now_left = await self.place.look()
        before = {(one.what, one.where) for one in left}
        await self._mend([one for one in now_left if (one.what, one.where) in before])
        if self.known.loss is not None:
            epoch = await log_loss.begin_epoch(self.place.pool, self.place.redis)
        else:
            epoch = self.known.epoch
        _, still = await self.place.look()
        kept = {one["where"] for one in self.repairs if one["status"] == "completed"}
        kept -= {one["where"] for one in self.repairs if one["does"] != "adopt"}
        lost = [one for one in after.sagas if one.lost and one.instance_name not in kept]
        self._report(plan, epoch, still, [str(one.saga_id) for one in lost])
        return UNFINISHED if still or lost else DONE

    async def _take_again(self, found: Forgotten) -> bool:
        """Whether workers have taken the commands; then their sagas are waited for as well."""
        from evosaga.orchestrator.cli.integrations import workers
        from evosaga.orchestrator.commands import forgotten_commands

        if not found.commands:
            return True
        company = await workers(self.place.pool, self.out)
        ids = await forgotten_commands.take_again(self.place.redis, found.commands)
        if not await forgotten_commands.taken(self.place.redis, ids, self.deadline):
            return False
        await company()
        await self._over([one.saga_id for one in found.commands if one.saga_id is not None])
        return True

    async def _mend(self, left: Sequence[Leftover]) -> None:
        """Ask for the repairs, wait for them, and keep what became of them."""
        from evosaga.events.commands import BadCommand

        asked: dict[UUID, Leftover] = {}
        for one in left:
            if one.command is None:
                continue
            try:
                asked[(await self.place.gate.submit(one.command)).saga_id] = one
            except BadCommand as refusal:
                self._repaired(one, None, "refused", refusal.message)
        await self._over(list(asked))
        rows = await self.place.pool.fetch(_OUTCOMES, list(asked))
        for row in rows:
            self._repaired(asked[row["saga_id"]], row["saga_id"], row["status"], row["message"])

    def _repaired(
        self, one: Leftover, saga_id: UUID | None, status: str, message: str | None
    ) -> None:
        told = {"what": one.what, "where": one.where, "does": one.does, "status": status}
        self.repairs.append(told | {"saga_id": saga_id and str(saga_id), "message": message})

    async def _over(self, saga_ids: Sequence[UUID]) -> None:
        """Wait until these sagas are over, or parked, or time is up; they go on after that."""
        while time.monotonic() < self.deadline:
            if not await self.place.pool.fetchval(_ACTIVE, saga_ids):
                return
            await asyncio.sleep(_POLL)

    def _report(
        self,
        plan: dict[str, Any],
        epoch: int | None,
        left: Sequence[Leftover],
        lost: Sequence[str] = (),
    ) -> None:
        done = {"begun": epoch, "repairs": self.repairs, "lost_sagas": list(lost)}
        if self.out.json:
            still = described(self.known, None, left)["instances"]
            self.out.data(plan | done | {"left": still})
        else:
            tell_end(done, left, self.out)


_ACTIVE: Final = """
SELECT count(*) FROM evosaga.open_sagas WHERE saga_id = ANY($1) AND status <> 'failed'
"""
_OUTCOMES: Final = """
SELECT saga_id, status, message FROM evosaga.sagas WHERE saga_id = ANY($1)
"""
