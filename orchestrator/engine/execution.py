"""Executes one attempt of one step: its context, its timeout, and its outcome as an event."""

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final, assert_never

import structlog

from evosaga.events import syncpoints, trace_context
from evosaga.events.connection_errors import reason
from evosaga.events.model import (
    CompensationFailed,
    CompensationSucceeded,
    FollowUp,
    SagaEvent,
    SagaRejected,
    SagaStarted,
    StepFailed,
    StepSucceeded,
)
from evosaga.events.trace_context import SpanPlace
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.lease import LeaseLost
from evosaga.orchestrator.engine.resources import ResourceUnavailable, handed
from evosaga.orchestrator.engine.state import InFlight, State
from evosaga.orchestrator.engine.transient_errors import is_transient_for_step
from evosaga.orchestrator.engine.turns import AheadParked
from evosaga.sagas.context import StepContext
from evosaga.sagas.definition import InCommit
from evosaga.sagas.outcome import Done, Held, NotOnThisWorker, Outcome, Rejected, Unknown

_logger = structlog.get_logger("evosaga.attempt")
_LONGEST_MESSAGE: Final = 500
_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


async def execute(live: SagaInstance, flight: InFlight, services: object) -> SagaEvent:
    """Call the step; whatever happens becomes an outcome.

    Raises only ``LeaseLost`` and ``NotOnThisWorker``.
    """
    step = live.saga.step(flight.step)
    effect = step.do if flight.direction == "forward" else step.undo
    assert effect is not None, "only compensatable steps are compensated"
    assert not isinstance(effect, InCommit), "joined effects never are in flight"
    if live.refused is not None and flight.direction == "forward":
        return outcome_event(flight, from_exception(live, flight, live.refused))
    undoing = flight.direction == "compensation"
    _enter(live)
    try:
        async with asyncio.timeout(step.timeout):
            await syncpoints.reach("start.post", step.name, undoing=undoing)
            outcome = await effect(context(live, flight, services))
            await syncpoints.reach("eff.post", step.name, undoing=undoing)
            if not isinstance(outcome, Done | Rejected | Unknown | Held):
                raise TypeError("a step must return an Outcome")
    except TimeoutError:
        outcome = Unknown("timeout", f"no outcome within {step.timeout:g} s")
    except (LeaseLost, NotOnThisWorker):
        raise
    except Exception as error:
        outcome = from_exception(live, flight, error)
    if not isinstance(outcome, Done):
        # A thousand sagas that wait for one server are one alert, which the breaker gives.
        tell = _logger.debug if isinstance(outcome, Held) else _logger.warning
        tell(
            "step " + type(outcome).__name__.lower(),
            saga_id=str(live.saga_id),
            step=step.name,
            direction=flight.direction,
            attempt=flight.attempt,
            code=outcome.code,
            message=outcome.message,
        )
    try:
        return outcome_event(flight, outcome)
    except Exception as error:  # an outcome with something in it that no event can have
        return outcome_event(flight, from_exception(live, flight, error))


def _enter(live: SagaInstance) -> None:
    """Let the lines of this task's log, and of the libraries that a step uses, name the saga, and
    its attempt's span where the saga was given a trace.

    Each saga has a task of its own, so nothing has to be put back. What the task was begun with is
    another's: it copies the context of whoever began it, an attempt or an HTTP request.
    """
    structlog.contextvars.bind_contextvars(saga_id=str(live.saga_id))
    facts = live.state.start.facts if isinstance(live.state.start, SagaStarted) else {}
    given = trace_context.valid(facts.get(trace_context.FACT))
    at: SpanPlace | None = None
    if given is not None or trace_context.entered is not None:
        at = trace_context.of_attempt(live.saga_id, live.state.sequence - 1, given)
    if at is not None and trace_context.entered is not None:
        trace_context.entered(at)
    trace_context.current.set(at if given is not None else None)
    trace_context.incoming.set(None)


def from_exception(
    live: SagaInstance, flight: InFlight, error: Exception
) -> Rejected | Unknown | Held:
    """What an exception amounts to. Its text may carry a stranger's keys: only its kind is kept.

    An operator's mistake and an outage are held. Whether the outage came before the effect or after
    it is unknown.
    """
    if isinstance(error, NotOnThisWorker):
        return Held(error.code, error.reason)
    if isinstance(error, AheadParked):
        return Rejected(error.code, str(error))
    if isinstance(error, ResourceUnavailable):
        return Held(error.code, str(error))
    if is_transient_for_step(error):
        said = f"something that the step needs could not be reached ({reason(error)})"
        return Held("dependency_unreachable", said, in_doubt=True)
    _logger.error("step raised", saga_id=str(live.saga_id), step=flight.step, at=where(error))
    return Unknown("exception", f"the step raised {type(error).__name__}")


def context(
    live: SagaInstance, flight: InFlight, services: object, state: State | None = None
) -> StepContext[Any, Any]:
    """The context of an attempt. An undo is in doubt only about earlier tries of the undo itself.

    ``state``: what will be so at that moment, where more has happened than is committed yet.
    """
    state = state or live.state
    start = state.start
    assert start is not None
    assert not isinstance(start, SagaRejected)
    progress = state.progress(flight.step)
    doubted_at = live.doubted_at.get(flight.step)
    return StepContext(
        saga_id=live.saga_id,
        input=live.input,
        services=handed(services, live.saga.name),
        attempt=flight.attempt,
        in_doubt=(progress.in_doubt if flight.direction == "forward" else progress.undo_in_doubt),
        last_code=state.failure.code if state.failure else None,
        was_done=progress.done,
        age=time.monotonic() - live.started_at,
        doubt_age=time.monotonic() - doubted_at if doubted_at is not None else None,
        facts=start.facts,
        results={name: p.result for name, p in state.steps.items() if p.result is not None},
    )


def outcome_event(flight: InFlight, outcome: Outcome) -> SagaEvent:
    """An outcome as the event that records it."""
    forward = flight.direction == "forward"
    at: dict[str, Any] = {"step": flight.step, "attempt": flight.attempt}
    if isinstance(outcome, Done) and not _storable(outcome.result):
        # Checked here, because a value that Postgres refuses would fail the whole batch.
        outcome = Unknown("unstorable_result", "the step's result is no JSON that can be stored")
    match outcome:
        case Done(result, follow):
            succeeded = StepSucceeded if forward else CompensationSucceeded
            command = FollowUp(type=follow.type, data=dict(follow.data)) if follow else None
            return succeeded(**at, result=dict(result), follow_up=command)
        case Rejected(code, message):
            why: dict[str, Any] = {"outcome": "rejected"}
        case Unknown(code, message):
            why = {"outcome": "unknown", "in_doubt": True}
        case Held(code, message, retry_after, in_doubt):
            why = {"outcome": "held", "in_doubt": in_doubt, "retry_after_seconds": retry_after}
        case never:
            assert_never(never)
    # It may quote a stranger: neither a NUL nor half a surrogate pair can be stored.
    message = message.encode(errors="replace").decode().replace("\0", "")[:_LONGEST_MESSAGE]
    if forward:
        return StepFailed(**at, **why, code=code, message=message)
    # An undo looks before it acts each time, so whether one had its effect makes no difference.
    why.pop("in_doubt", None)
    return CompensationFailed(**at, **why, code=code, message=message)


def _storable(result: Mapping[str, Any]) -> bool:
    """Whether Postgres takes it as jsonb: no NaN, no NUL, no half of a surrogate pair."""
    if not result:
        return True
    try:
        text = _encode(dict(result))
        return "\\u0000" not in text and bool(text.encode())
    except (TypeError, ValueError):
        return False


def where(error: BaseException) -> str:
    """Where an exception came from: file and line, never its text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    file = "/".join(PurePath(trace.tb_frame.f_code.co_filename).parts[-2:])
    return f"{type(error).__name__} at {file}:{trace.tb_lineno}"
