"""What a replay would do to the world. Pure.

It puts what a saga's history says beside what a fresh look found, and says for each step

    reuse       it was done and is there (or can't be looked at, and is believed)
    adopt       it was not known to be done, and is there all the same
    redo        it is done, or done again
    undo first  half of it is there, or the saga is going back and has it still to undo
    blocked     what is there belongs to others, or the look found out nothing
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from uuid import UUID

from evosaga.orchestrator.engine.state import Progress, State
from evosaga.sagas.definition import Saga, Step
from evosaga.sagas.outcome import Finding, Sighting

Action: TypeAlias = Literal["reuse", "adopt", "redo", "undo first", "blocked"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan; ``evidence`` is a sentence for people, without secrets."""

    step: str
    action: Action
    evidence: str


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a replay would do. ``allowed`` says whether it would be taken, ``code`` why not.

    ``anew``: the saga was rolled back, so it would start again as a saga of its own.
    """

    headline: str
    allowed: bool
    lines: tuple[PlannedStep, ...] = ()
    code: str | None = None
    anew: bool = False
    redo: tuple[str, ...] = ()
    """Steps that were done and whose effect is gone: the replay does them again."""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "allowed": self.allowed,
            "headline": self.headline,
            "code": self.code,
            "anew": self.anew,
            "steps": [
                {"step": line.step, "action": line.action, "evidence": line.evidence}
                for line in self.lines
            ],
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """The command of a saga that was rolled back would not be accepted now, and why."""

    code: str
    message: str


def replay_plan(
    saga: Saga | None,
    state: State,
    findings: Mapping[str, Finding],
    refused: Refused | None = None,
) -> ReplayPlan:
    """What a replay of a saga in this state would do, given what a look at its steps found.

    ``saga`` is the definition that would run: for one that was rolled back today's newest, since
    it starts anew, and ``refused`` is then why its command would not be accepted.
    """
    match state.status:
        case "failed" if saga is not None:
            if state.direction == "compensation":
                return _backward(saga, state, findings)
            return _forward(saga, state, findings)
        case "failed":
            said = "it goes on under a release that knows its definition; this one can't look"
            return ReplayPlan(said, allowed=True)
        case "compensated":
            return anew(saga, findings, refused)
    sentence = not_replayable(state)
    return ReplayPlan(f"refused: {sentence}", allowed=False, code="not_replayable")


def not_replayable(state: State) -> str:
    """Why a saga that is neither failed nor compensated can't be replayed, and what to do."""
    match state.status:
        case "completed":
            return "the saga is completed; there is nothing left to do"
        case "rejected":
            return "the saga was rejected before anything was done; publish a new command instead"
        case "compensating":
            return "the saga is compensating and goes on by itself; wait until it is over"
    return "the saga is running and goes on by itself; cancel it if it should stop"


def _forward(saga: Saga, state: State, findings: Mapping[str, Finding]) -> ReplayPlan:
    lines = tuple(
        _forward_line(step, state.progress(step.name), findings.get(step.name))
        for step in saga.steps
    )
    redo = tuple(
        line.step
        for line in lines
        if line.action in ("redo", "undo first") and state.progress(line.step).done
    )
    assert state.parked is not None
    if (foreign := _of(Sighting.FOREIGN, lines, findings)) is not None:
        said = f"refused: step {foreign.step} is blocked: {foreign.evidence}"
        return ReplayPlan(said, allowed=False, lines=lines, code="blocked")
    if (dark := _of(Sighting.UNKNOWN, lines, findings)) is not None:
        said = (
            f"it goes on at step {redo[0] if redo else state.parked.step}, but it is unknown now "
            f"what is there (step {dark.step}: {dark.evidence}); each step looks before it acts"
        )
        return ReplayPlan(said, allowed=True, lines=lines, redo=redo)
    said = f"it goes on at step {state.parked.step} with fresh attempts"
    if redo:
        said += f", after doing {_listed(redo)} again"
    return ReplayPlan(said, allowed=True, lines=lines, redo=redo)


def _forward_line(step: Step, progress: Progress, finding: Finding | None) -> PlannedStep:
    if finding is None:
        return _unseen(step, progress)
    action: Action
    match finding.sighting:
        case Sighting.THERE:
            action = "reuse" if progress.done else "adopt"
        case Sighting.ABSENT:
            action = "redo"
        case Sighting.HALF:
            action = "undo first"
        case Sighting.FOREIGN | Sighting.UNKNOWN:
            action = "blocked"
    return PlannedStep(step.name, action, finding.evidence)


def _unseen(step: Step, progress: Progress) -> PlannedStep:
    """A step without a probe: what was recorded is all there is."""
    if progress.done:
        return PlannedStep(step.name, "reuse", "it was done; there is nothing to look at")
    if progress.attempts or progress.in_doubt:
        return PlannedStep(step.name, "redo", "it was tried and never said that it was done")
    return PlannedStep(step.name, "redo", "it was never begun")


def _backward(saga: Saga, state: State, findings: Mapping[str, Finding]) -> ReplayPlan:
    """It stays on its way back: what is left to undo is undone, in that order."""
    undone = tuple(name for name, progress in state.steps.items() if progress.undone)
    lines = [PlannedStep(name, "reuse", "it was undone, and stays so") for name in undone]
    for name in state.to_compensate:
        finding = findings.get(name)
        lines.append(
            PlannedStep(name, "undo first", finding.evidence if finding else _left(saga, state))
        )
    said = (
        f"it stays on its way back and undoes {_listed(state.to_compensate)}, with fresh attempts"
    )
    return ReplayPlan(said, allowed=True, lines=tuple(lines))


def _left(saga: Saga, state: State) -> str:
    assert state.parked is not None
    return f"it is not known to be undone; step {state.parked.step} was given up on"


def anew(
    saga: Saga | None,
    findings: Mapping[str, Finding],
    refused: Refused | None = None,
    behind: UUID | None = None,
) -> ReplayPlan:
    """The plan for a saga that was rolled back; ``behind``: the one it would have to wait for."""
    if refused is not None:
        steps = saga.steps if saga else ()
        lines = tuple(PlannedStep(s.name, "blocked", "the command would be refused") for s in steps)
        said = f"refused: {refused.message}"
        return ReplayPlan(said, allowed=False, lines=lines, code=refused.code, anew=True)
    if saga is None:
        said = "refused: no saga of this release starts with its command"
        return ReplayPlan(said, allowed=False, code="unknown_type", anew=True)
    lines = tuple(_forward_line(step, Progress(), findings.get(step.name)) for step in saga.steps)
    if (foreign := _of(Sighting.FOREIGN, lines, findings)) is not None:
        said = f"refused: step {foreign.step} is blocked: {foreign.evidence}"
        return ReplayPlan(said, allowed=False, lines=lines, code="blocked", anew=True)
    said = "everything it did was undone, so it starts anew, as a saga of its own"
    if behind is not None:
        said += f", once saga {behind} is over"
    return ReplayPlan(said, allowed=True, lines=lines, anew=True)


def _of(
    sighting: Sighting, lines: Sequence[PlannedStep], findings: Mapping[str, Finding]
) -> PlannedStep | None:
    """The first line whose step looks like that."""
    return next(
        (one for one in lines if (f := findings.get(one.step)) and f.sighting is sighting), None
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names) or "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"
