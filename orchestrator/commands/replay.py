"""Looking at the world before a replay does anything to it.

``probe_steps`` asks the probes of the steps, all at once and not for long; it changes
nothing. ``plan_of`` puts what they found beside the history (``plan``). A replay looks the same way
before it goes on (``steer``), and each step looks once more before it acts, so a plan is never a
promise that is carried out blindly.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

import structlog

from evosaga.events.commands import BadCommand, Command
from evosaga.events.connection_errors import reason
from evosaga.events.database import Pool
from evosaga.events.model import Recorded, SagaRejected
from evosaga.orchestrator.commands.accept import dry_run, parse_request
from evosaga.orchestrator.commands.replay_plan import PlannedStep as PlannedStep
from evosaga.orchestrator.commands.replay_plan import Refused, anew, replay_plan
from evosaga.orchestrator.commands.replay_plan import ReplayPlan as ReplayPlan
from evosaga.orchestrator.engine.execution import context
from evosaga.orchestrator.engine.instance import SagaInstance, UnknownSaga
from evosaga.orchestrator.engine.state import InFlight, State, replay
from evosaga.orchestrator.queries import sagas
from evosaga.sagas.definition import Step
from evosaga.sagas.outcome import Finding, Sighting
from evosaga.sagas.registry import SagaRegistry

_logger = structlog.get_logger("evosaga.replay")
LOOK_SECONDS: Final = 3.0
"""How long one probe may take; a look that takes longer found out nothing."""


async def probe_steps(
    live: SagaInstance, services: object, *, seconds: float = LOOK_SECONDS
) -> dict[str, Finding]:
    """Ask the probe of every step that has one, all at once; the findings by step.

    Nothing is changed. A probe that raises or takes longer than ``seconds`` found out nothing.
    """
    steps = [step for step in live.saga.steps if step.probe is not None]
    found = await asyncio.gather(*(_ask(step, live, services, seconds) for step in steps))
    return {step.name: finding for step, finding in zip(steps, found, strict=True)}


async def _ask(step: Step, live: SagaInstance, services: object, seconds: float) -> Finding:
    assert step.probe is not None
    attempt = max(1, live.state.progress(step.name).attempts)
    told = context(live, InFlight(step.name, "forward", attempt, ""), services)
    try:
        async with asyncio.timeout(seconds):
            return await step.probe(told)
    except TimeoutError:
        return Finding(Sighting.UNKNOWN, f"no answer within {seconds:g} s")
    except Exception as error:  # its text may carry a stranger's keys
        _logger.warning("probe_failed", step=step.name, error=type(error).__name__)
        return Finding(Sighting.UNKNOWN, f"the look failed ({reason(error)})")


async def plan_of(
    pool: Pool, services: object, registry: SagaRegistry, saga_id: UUID
) -> ReplayPlan:
    """The plan for a replay of this saga now. Raises ``BadCommand`` when there is no such saga."""
    history = await sagas.history(pool, saga_id)
    if not history:
        raise BadCommand("unknown_saga", f"there is no saga {saga_id}")
    state = replay(recorded.event for recorded in history)
    if state.status == "compensated":
        return await _plan_anew(pool, services, registry, state)
    if state.status != "failed":
        return replay_plan(None, state, {})
    now: datetime = await pool.fetchval("SELECT now()")
    return await plan_parked(registry, history, state, services, now)


async def plan_parked(
    registry: SagaRegistry,
    history: Sequence[Recorded],
    state: State,
    services: object,
    now: datetime,
) -> ReplayPlan:
    """Look at what a parked saga did, and plan; ``now`` is the database's time."""
    try:
        live = SagaInstance.rehydrated(registry, history, now)
    except UnknownSaga:
        return replay_plan(None, state, {})
    return replay_plan(live.saga, state, await probe_steps(live, services))


async def _plan_anew(
    pool: Pool, services: object, registry: SagaRegistry, old: State
) -> ReplayPlan:
    """Ask admission for real, take it back, and look at the world with the new saga's eyes."""
    assert old.start is not None
    command = Command(id=str(uuid4()), type=old.start.command, data=dict(old.start.input))
    try:
        request = parse_request(registry, command)
    except BadCommand as refusal:
        return replay_plan(None, old, {}, Refused(refusal.code, refusal.message))
    begun = await dry_run(pool, services, request)
    start = begun.start
    if isinstance(start, SagaRejected):
        return replay_plan(request.saga, old, {}, Refused(start.code, start.message))
    assert start is not None
    live = SagaInstance.started(registry, command.saga_id, begun, str(command.saga_id))
    findings = await probe_steps(live, services)
    return anew(request.saga, findings, behind=start.behind)
