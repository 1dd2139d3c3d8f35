"""Reconciling: compare the stores, and let sagas repair what was seen twice.

Six stages: ``observe`` and ``probe`` make a ``Snapshot``, ``classify`` gives each name its verdict,
``drift`` makes the plan, ``confirmations`` keeps what was seen in two runs, and ``repair`` asks for
sagas. Nothing is changed here. The id of a repair's command follows from what was seen, so two
processes that reconcile at once, or one that was killed and begins anew, repair a thing once. The
saga then holds the name, looks again and only then acts.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from uuid import UUID

import structlog

from evosaga.events import log_loss
from evosaga.events.commands import BadCommand, Command
from evosaga.events.database import Pool
from evosaga.orchestrator.commands.forgotten import ForgottenSaga
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.whatsapp.reconciliation import confirmations, incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.classify import choices, strangers
from evosaga.orchestrator.whatsapp.reconciliation.confirmations import ObservedDrift, Unobserved
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift, reconcile_plan
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    ObservationFailed,
    may_come_back,
    unreachable,
)
from evosaga.orchestrator.whatsapp.reconciliation.observe import observe
from evosaga.orchestrator.whatsapp.reconciliation.probes import probe
from evosaga.orchestrator.whatsapp.reconciliation.sift import Sifted, agreeing
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep, Snapshot
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS, Policy
from evosaga.sagas.whatsapp.evolution.pacing import Pace
from evosaga.sagas.whatsapp.services import Services

_logger = structlog.get_logger("evosaga.reconcile")
EVERYTHING: Final = tuple(VERDICTS)
ORPHANS: Final = ("orphan", "rowless")
"""Instances of ours that should not be there: what may be left behind in spite of everything."""
OFTEN: Final = (*ORPHANS, *incomplete_instances.KINDS)
"""What is looked for between two looks at everything."""
_FOR_GOOD: Final = ("instance.remove", "integration.delete", "key.drop")
_MOST: Final = 200
"""Repairs that one round asks for; what is left comes in the next, soon after."""
_SHOWN: Final = 50


class UnknownChoice(Exception):
    """The instance that is to be kept is none of the organization's; the caller must choose."""


@dataclass(frozen=True, slots=True)
class Reconciler:
    """What keeping the stores true needs. ``quiet`` is the least time between two looks."""

    pool: Pool
    services: Services
    gate: CommandHandler
    patterns: Sequence[str] = ()
    quiet: float = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A repair that was asked for, and the saga that carries it out."""

    sighting: ObservedDrift
    saga_id: UUID
    kind: str


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What one round found and did, for the log, the dashboard and the command line."""

    drifts: Sequence[Drift] = ()
    repairs: Sequence[Asked] = ()
    waiting: int = 0
    """Drifts that will be repaired by themselves, and were seen too recently, or are too many."""
    aborted: str | None = None
    seconds: float = 0.0
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Evolution servers that could not be looked at, and why."""
    strangers: int = 0
    """Instances of unknown owners."""

    def summary(self) -> dict[str, Any]:
        """As the table of chores keeps it."""
        return {
            "drifts": len(self.drifts),
            "by_kind": dict(Counter(drift.what for drift in self.drifts)),
            "repairs": len(self.repairs),
            "waiting": self.waiting,
            "strangers": self.strangers,
            "aborted": self.aborted,
            "not_looked_at": unreachable(self.unseen),
            "seconds": round(self.seconds, 3),
            "shown": [described(drift) for drift in self.drifts[:_SHOWN]],
        }


def described(drift: Drift) -> dict[str, Any]:
    """A drift for programs; its command stays here, since it may hold a phone number."""
    told = asdict(drift)
    del told["command"]
    return told | {"organization_id": str(drift.organization_id) if drift.organization_id else None}


@dataclass(frozen=True, slots=True)
class Found:
    """What is wrong, and the Evolution servers that could not be looked at."""

    drifts: list[Drift]
    unseen: Mapping[str, str]
    blind: Unobserved
    """What of it may be there all the same, and must not be forgotten."""
    strangers: Sequence[str] = ()
    """Instances of unknown owners."""
    busy: int = 0
    """Instances that sagas are at work for, and that were not compared therefore."""
    paired: frozenset[str] = frozenset()
    """Instances to which a phone is or was linked."""
    forgotten: Mapping[str, str] = field(default_factory=dict)
    """Instances of the sagas that the log has forgotten, with the hash of their token."""


async def find(
    keeper: Reconciler,
    *,
    kinds: Collection[str] = EVERYTHING,
    keep: Keep | None = None,
    share: int | None = None,
    forgotten: Sequence[ForgottenSaga] = (),
) -> Found:
    """What is wrong now; with ``keep``, for that organization only.

    ``share``: so many webhooks are asked for, in turn; None: all. ``forgotten``: sagas of which
    the stream of events knows more than the log. Raises ``ObservationFailed``, and
    ``UnknownChoice`` when the instance to keep is not there.
    """
    everything = set(kinds) >= set(EVERYTHING)
    patterns = keeper.patterns if everything else ()
    seen = await observe(
        keeper.pool,
        keeper.services,
        patterns=patterns,
        keys=everything,
        keep=keep,
        share=(share or 0) if everything else 0,
        forgotten=forgotten,
    )
    snapshot = await probe(keeper.pool, keeper.services, seen, everything=everything)
    if keep is not None and keep.choice not in ("connected", "none"):
        names = choices(snapshot, keep.organization_id)
        if keep.choice not in names:
            known = ", ".join(names) or "none"
            raise UnknownChoice(f"there is no {keep.choice} to keep; the organization has: {known}")
    every = await asyncio.to_thread(reconcile_plan, snapshot)
    if not set(kinds).isdisjoint(incomplete_instances.KINDS):
        whose = keep.organization_id if keep else None
        scope = incomplete_instances.Scope(whose, suspects=not everything, share=share)
        every += await incomplete_instances.drifts(keeper.pool, keeper.services, snapshot, scope)
        if share is None and keep is None:
            every += await _of_those_that_agree(keeper, seen.sifted, snapshot, scope)
    drifts = [
        drift
        for drift in every
        if drift.what in kinds and (keep is None or drift.organization_id == keep.organization_id)
    ]
    away = may_come_back(snapshot.unseen)
    hidden = await confirmations.with_rows_on(keeper.pool, away) if away else set()
    return Found(
        drifts,
        snapshot.unseen,
        Unobserved(away, hidden),
        await asyncio.to_thread(strangers, snapshot) if everything and keep is None else (),
        await confirmations.busy(keeper.pool, snapshot.unseen) if keep is None else 0,
        frozenset(name for name, one in snapshot.instances.items() if one.paired),
        _made_by(snapshot, forgotten) if forgotten else {},
    )


async def _of_those_that_agree(
    keeper: Reconciler, sifted: Sifted, snapshot: Snapshot, scope: incomplete_instances.Scope
) -> list[Drift]:
    """What is incomplete among those of which nothing else is to be said, in pages."""
    found: list[Drift] = []
    paces: dict[str, Pace] = {}
    pool, services = keeper.pool, keeper.services
    async for page in agreeing(pool, services, sifted, snapshot.unseen):
        found += await incomplete_instances.drifts(pool, services, page, scope, paces)
    return found


def _made_by(snapshot: Snapshot, forgotten: Sequence[ForgottenSaga]) -> dict[str, str]:
    ids = {saga.saga_id for saga in forgotten}
    return {name: one.token_hash for name, one in snapshot.instances.items() if one.made_by in ids}


async def run_once(
    keeper: Reconciler,
    *,
    kinds: Collection[str] = EVERYTHING,
    may_go_on: Callable[[], bool] = lambda: True,
) -> ReconcileReport:
    """One round by itself: what policy ``auto`` allows is repaired, the rest is only reported.

    ``may_go_on`` is asked before each repair: a process that is not in charge any more stops there.
    """
    began = time.monotonic()
    try:
        found = await find(keeper, kinds=kinds, share=incomplete_instances.SHARE)
    except ObservationFailed as reason:
        _logger.warning("reconcile_stopped", reason=str(reason))
        return ReconcileReport(aborted=str(reason), seconds=time.monotonic() - began)
    drifts = found.drifts
    seen = await confirmations.note(
        keeper.pool, drifts, kinds=tuple(kinds), blind=found.blind, grace=keeper.quiet
    )
    mendable = [s for s in seen if s.drift.policy == "auto" and s.drift.command is not None]
    ripe = [sighting for sighting in mendable if sighting.ripe]
    repairs = [
        asked
        for sighting in ripe[:_MOST]
        if may_go_on() and (asked := await repair(keeper, sighting)) is not None
    ]
    waiting = sum(not s.ripe and s.repairs == 0 for s in mendable) + len(ripe[_MOST:])
    done = ReconcileReport(
        *(drifts, repairs, waiting, None, time.monotonic() - began, found.unseen),
        strangers=len(found.strangers),
    )
    told = {k: v for k, v in done.summary().items() if k != "shown"}
    (_logger.warning if drifts or found.unseen else _logger.info)("reconciled", **told)
    return done


async def repair(keeper: Reconciler, sighting: ObservedDrift) -> Asked | None:
    """Ask for the saga that repairs it; None when that was refused, which is logged.

    What would be gone for good waits while the log is known to have gone back: what it forgot may
    be why the thing is there.
    """
    drift = sighting.drift
    assert drift.command is not None
    if drift.command.type in _FOR_GOOD:
        loss = (await log_loss.notice(keeper.pool, keeper.services.redis)).loss
        if loss is not None:
            about = {"what": drift.what, "instance_name": drift.where}
            _logger.warning("repair waits", **about, reason=str(loss), cure=log_loss.RECOVER)
            return None
    command = Command(
        id=sighting.command_id, type=drift.command.type, data=dict(drift.command.data)
    )
    about = {"what": drift.what, "instance_name": drift.where}
    try:
        accepted = await keeper.gate.submit(command)
    except BadCommand as refusal:
        _logger.error("repair refused", **about, code=refusal.code, reason=refusal.message)
        await confirmations.repaired(keeper.pool, sighting)  # or it would be asked for all the time
        return None
    await confirmations.repaired(keeper.pool, sighting)
    _logger.warning(
        "repair asked for", **about, saga_id=str(accepted.saga_id), accepted=accepted.kind
    )
    return Asked(sighting, accepted.saga_id, accepted.kind)


def allowed(drift: Drift, policies: Collection[Policy], remove: Collection[str] = ()) -> bool:
    """Whether there is a repair that the caller may have.

    ``remove``: instances that a person named one by one. What our log never heard of may be
    another deployment's, so no choice for an organization or for all is enough.
    """
    if drift.command is None:
        return False
    if drift.where in remove and drift.waits:
        return True
    return drift.policy in policies and drift.what != "unrecorded"


def removable(drifts: Sequence[Drift]) -> list[str]:
    """The instances that no row names and that a person may have removed by name."""
    return [d.where for d in drifts if d.policy == "ask" and d.waits and d.what != "superseded"]
