"""Control commands: a replay or cancel as an event in a saga's history.

Both are idempotent by the id of the command that asked for them, which is recorded as the
event's cause. A replay looks at the world before it goes on: what was done and is gone is done
again, and what belongs to others by now stops it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from evosaga.events.append import Append
from evosaga.events.commands import STEERING as STEERING
from evosaga.events.commands import BadCommand, Command, no_control_characters
from evosaga.events.event_log import EventLog, VersionConflict
from evosaga.events.model import Recorded, SagaCancelRequested, SagaEvent, SagaResumed
from evosaga.orchestrator.commands.accept import checked, too_late
from evosaga.orchestrator.commands.replay import plan_parked
from evosaga.orchestrator.commands.replay_plan import not_replayable
from evosaga.orchestrator.commands.results import Applied, Conflict, Duplicate
from evosaga.orchestrator.engine.decider import can_compensate, decide
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.projection import status_row
from evosaga.orchestrator.engine.state import OPEN, State, evolve, replay
from evosaga.sagas.registry import SagaRegistry


class ControlCommand(BaseModel):
    """The ``data`` of ``saga.replay`` and ``saga.cancel``.

    ``if_possible``: when it can't be, because the saga is over or past its point of no return,
    say, then nothing is done and nobody is told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="Steering")

    saga_id: UUID
    reason: (
        Annotated[str, StringConstraints(max_length=500), AfterValidator(no_control_characters)]
        | None
    ) = None
    if_possible: bool = False


UNKNOWN_VERSION: Final = "unknown_version"
"""The code of a refusal that another worker, of another release, would not give."""
REFUSALS: frozenset[str] = frozenset(
    {"unknown_saga", "not_replayable", "not_cancellable", "blocked", "expired"}
)
"""The codes of refusals that depend on the saga's state, not on the command's form."""


@dataclass(frozen=True, slots=True)
class Restart:
    """A replay that starts the saga anew, as a saga of its own."""

    command: Command


async def apply_control(
    log: EventLog,
    services: object,
    registry: SagaRegistry,
    command: Command,
    engine: Engine | None,
    too_soon: Callable[[], Awaitable[bool]] | None = None,
) -> Restart | Applied | Duplicate:
    """Obey a ``saga.replay`` or ``saga.cancel``. Raises ``BadCommand`` when it may not be.

    Without an ``engine`` at hand the next sweep of a worker finds what is due. A replay takes as
    long as its look at the world, a few seconds at most. ``too_soon`` is asked before a refusal:
    whether what came before the wish had not been obeyed yet, and is now.
    """
    wish: ControlCommand = checked(ControlCommand, command)
    try:
        return await _apply(log, services, registry, command, wish, engine)
    except BadCommand as refusal:
        if too_soon is not None and refusal.code in REFUSALS and await too_soon():
            return await apply_control(log, services, registry, command, engine, too_soon)
        if wish.if_possible and refusal.code not in ("conflicting_duplicate", UNKNOWN_VERSION):
            return Duplicate(wish.saga_id)
        raise


async def _apply(
    log: EventLog,
    services: object,
    registry: SagaRegistry,
    command: Command,
    wish: ControlCommand,
    engine: Engine | None,
) -> Restart | Applied | Duplicate:
    while True:
        history = await log.read(wish.saga_id)
        if not history:
            raise BadCommand("unknown_saga", f"there is no saga {wish.saga_id}")
        if _asked_before(history, command, wish):
            return Duplicate(wish.saga_id)
        if command.expires_at is not None and command.expires_at <= await log.now():
            raise BadCommand("expired", too_late(command.expires_at))
        state = replay(r.event for r in history)
        if command.type == "saga.replay" and state.status == "compensated":
            return Restart(_anew(command, state, history[0]))
        if await log.read(command.saga_id):
            raise _conflict(command)
        event: SagaEvent
        if command.type == "saga.replay":
            event = await _resumed(log, services, registry, command, wish, history, state)
        else:
            event = _cancelled(registry, command, wish, state)
        try:
            await log.append(_append(registry, history, state, event, command.id))
        except VersionConflict:
            continue
        if engine is not None and not engine.wake(wish.saga_id):
            history = await log.read(wish.saga_id)
            if replay(r.event for r in history).in_flight is None:
                engine.take_over({wish.saga_id: history}, history[-1].recorded_at)
        return Applied(wish.saga_id)


def _asked_before(history: list[Recorded], command: Command, wish: ControlCommand) -> bool:
    """Whether this very wish was obeyed already. Raises when its id was used for another."""
    for recorded in history:
        event = recorded.event
        if isinstance(event, SagaResumed | SagaCancelRequested) and event.by == command.id:
            asked = "saga.replay" if isinstance(event, SagaResumed) else "saga.cancel"
            if (asked, event.reason) == (command.type, wish.reason):
                return True
            if not command.follow_up:  # another command may have that id by chance
                raise _conflict(command)
    return False


def _conflict(command: Command) -> BadCommand:
    return Conflict(command.saga_id, command.id).refusal


async def _resumed(
    log: EventLog,
    services: object,
    registry: SagaRegistry,
    command: Command,
    wish: ControlCommand,
    history: list[Recorded],
    state: State,
) -> SagaResumed:
    """The replay as an event, after a look at what is still there of what the saga did."""
    check_allowed(registry, command.type, state)
    plan = await plan_parked(registry, history, state, services, await log.now())
    if not plan.allowed:
        raise BadCommand(plan.code or "blocked", plan.headline.removeprefix("refused: "))
    return SagaResumed(by=command.id, reason=wish.reason, redo=plan.redo or None)


def _cancelled(
    registry: SagaRegistry, command: Command, wish: ControlCommand, state: State
) -> SagaCancelRequested:
    check_allowed(registry, command.type, state)
    return SagaCancelRequested(by=command.id, reason=wish.reason)


def check_allowed(registry: SagaRegistry, type_: str, state: State) -> None:
    """Whether a saga in this state can be replayed or cancelled. Raises ``BadCommand``.

    That is all that can be known without a look at the world, which may still refuse a replay.
    """
    if type_ == "saga.replay":
        if state.status not in ("failed", "compensated"):
            raise BadCommand("not_replayable", not_replayable(state))
        return
    if state.status not in OPEN:
        raise BadCommand("not_cancellable", f"the saga is {state.status} already")
    assert state.start is not None
    saga = registry.find(state.start.saga, state.start.version)
    if saga is None:
        named = f"{state.start.saga} v{state.start.version}"
        said = f"this release does not know {named}; a worker of the release that began it does"
        raise BadCommand(UNKNOWN_VERSION, said)
    if state.direction == "forward" and not can_compensate(saga, state):
        onward = "replay it when its cause is mended" if state.parked else "it will complete"
        said = f"the saga is past its point of no return; {onward}"
        raise BadCommand("not_cancellable", said)


def _append(
    registry: SagaRegistry, history: list[Recorded], state: State, event: SagaEvent, cause: str
) -> Append[State]:
    """The event, leaving an attempt that is out with the worker that makes it."""
    after = evolve(state, event)
    assert after.start is not None
    saga = registry.find(after.start.saga, after.start.version)
    assert saga is not None, "a saga of another release is refused before"
    flight = after.in_flight
    row = status_row(saga, after, decide(saga, after), flight.worker if flight else None)
    return Append(
        history[0].saga_id,
        state.sequence,
        [event],
        # While an attempt is out the row's owner and times are its driver's to change.
        replace(row, kept=flight is not None),
        history[0].correlation_id,
        cause,
        after,
    )


def _anew(command: Command, state: State, first: Recorded) -> Command:
    start = state.start
    assert start is not None
    data: dict[str, Any] = dict(start.input)
    return Command(
        id=command.id,
        type=start.command,
        data=data,
        correlation_id=first.correlation_id,
        causation_id=str(first.saga_id),
        organization_id=command.organization_id,
        follow_up=command.follow_up,
    )
