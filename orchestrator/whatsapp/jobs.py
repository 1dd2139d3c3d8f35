"""The periodic jobs of WhatsApp: reconciliation, the search for orphans, the health check."""

from typing import Final

from evosaga.events.database import Pool
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.maintenance.scheduler import (
    AnyJob,
    Job,
    JobResult,
    SharedJob,
    StillLeader,
)
from evosaga.orchestrator.whatsapp.health import monitor, overview
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor
from evosaga.orchestrator.whatsapp.reconciliation import reconciler
from evosaga.orchestrator.whatsapp.reconciliation.inventory import may_come_back
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler
from evosaga.sagas.whatsapp.services import Services

HEALTH: Final = "health"
"""The chore; of several servers each has one of its own, ``health/NAME``."""


def jobs_of(
    settings: Settings, pool: Pool, services: Services, gate: CommandHandler
) -> list[AnyJob]:
    """What a worker does every now and then, as far as the settings have not turned it off."""
    keeper = Reconciler(pool, services, gate, settings.older_names, settings.quiet_seconds)
    posts = settings.alert_url is not None
    doctor = HealthMonitor(pool, services, settings.alert_after, posts, settings.health_every)

    async def reconcile_all(may_go_on: StillLeader) -> JobResult:
        return _reconciled(keeper, await reconciler.run_once(keeper, may_go_on=may_go_on))

    async def look_for_orphans(may_go_on: StillLeader) -> JobResult:
        done = await reconciler.run_once(keeper, kinds=reconciler.OFTEN, may_go_on=may_go_on)
        return _reconciled(keeper, done)

    wanted: list[AnyJob] = [
        Job("reconcile", settings.reconcile_every, reconcile_all),
        Job("orphans", settings.orphans_every, look_for_orphans),
        *(_health(doctor) if doctor.every > 0 else ()),
    ]
    return [chore for chore in wanted if chore.every > 0]


def _health(doctor: HealthMonitor) -> list[AnyJob]:
    """The check of one server, or one chore for each of several, and one that sums them up."""

    async def check_all(may_go_on: StillLeader) -> JobResult:
        return JobResult((await monitor.run_once(doctor, may_go_on=may_go_on)).summary())

    async def check_one(server: str, may_go_on: StillLeader) -> JobResult:
        done = await monitor.run_once(doctor, may_go_on=may_go_on, only=[server])
        return JobResult(done.summary())

    async def sum_up(_: StillLeader) -> JobResult:
        return JobResult(await overview.of_servers(doctor, HEALTH))

    servers = list(doctor.services.servers)
    if len(servers) == 1:
        return [Job(HEALTH, doctor.every, check_all)]
    return [
        SharedJob(HEALTH, doctor.every, servers, check_one),
        Job(HEALTH, doctor.every, sum_up),
    ]


def _reconciled(keeper: Reconciler, done: reconciler.ReconcileReport) -> JobResult:
    """A drift that was seen once is looked at again soon, not after a whole period.

    That has nothing to do with a server that is away meanwhile; the comparison with that one is
    due again after growing pauses.
    """
    blind = done.aborted is not None or bool(may_come_back(done.unseen))
    return JobResult(done.summary(), keeper.quiet + 1.0 if done.waiting else None, blind)
