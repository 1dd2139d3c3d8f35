"""Whether this release can finish what is under way: its definitions against the open sagas.

A saga finishes under the version it started with. A release that lacks that version leaves it
alone, and one whose definition was changed in place may read its history wrongly; both are better
found out before the old workers are gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError

from evosaga.events.database import Pool
from evosaga.events.model import Recorded, SagaResumed, SagaStarted
from evosaga.orchestrator.engine.decider import decide
from evosaga.orchestrator.engine.state import IllegalTransition, State, evolve, replay
from evosaga.orchestrator.maintenance.history_scan import ScannedHistory, batches
from evosaga.sagas.definition import Saga
from evosaga.sagas.registry import SagaRegistry


@dataclass(slots=True)
class Compatibility:
    """The open sagas of one version of one saga, and those this release would strand."""

    saga: str
    version: int
    known: bool
    open: dict[str, int] = field(default_factory=dict)
    """How many, by status."""
    stranded: dict[UUID, str] = field(default_factory=dict)
    """Why, by saga id; of a version that is not known they are not listed one by one."""

    @property
    def fits(self) -> bool:
        """Whether a deploy leaves none of them behind."""
        return self.known and not self.stranded

    @property
    def said(self) -> str:
        """The verdict in a sentence."""
        if not self.known:
            return "this release does not have it: keep workers that do until these are over"
        if self.stranded:
            return f"{len(self.stranded)} do not fit: {next(iter(self.stranded.values()))}"
        return "fits"

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "saga": self.saga,
            "version": self.version,
            "known": self.known,
            "fits": self.fits,
            "open": self.open,
            "said": self.said,
            "stranded": {str(saga_id): why for saga_id, why in self.stranded.items()},
        }


async def check_deploy(pool: Pool, registry: SagaRegistry) -> list[Compatibility]:
    """Hold every open saga against the definitions of this release."""
    verdicts: dict[tuple[str, int], Compatibility] = {}
    async for histories, rows in batches(pool, _OPEN, "saga_id, saga, version, status"):
        for told in histories:
            row = rows[told.saga_id]
            key = row["saga"], row["version"]
            saga = registry.find(*key)
            verdict = verdicts.setdefault(key, Compatibility(*key, known=saga is not None))
            verdict.open[row["status"]] = verdict.open.get(row["status"], 0) + 1
            if saga is not None and (why := unfit(saga, told)) is not None:
                verdict.stranded[told.saga_id] = why
    return sorted(verdicts.values(), key=lambda verdict: (verdict.saga, verdict.version))


def unfit(saga: Saga, told: ScannedHistory) -> str | None:
    """Why this definition can't go on with this history; None when it can. Pure."""
    if told.unreadable is not None:
        return told.unreadable
    names = [step.name for step in saga.steps]
    for recorded in told.history:
        step = getattr(recorded.event, "step", None)
        if step is not None and step not in names:
            return f"its history has a step {step!r}, and the definition has none"
    try:
        state = replay(recorded.event for recorded in told.history)
        if state.status == "failed":
            state = evolve(state, SagaResumed(by="check-deploy"))
        decide(saga, state)
        return _overtaken(names, state) or _not_undoable(saga, state) or _input(saga, told.history)
    except (IllegalTransition, LookupError, AssertionError):
        return "its history is one that this definition could not have written"


def _overtaken(names: Sequence[str], state: State) -> str | None:
    """A step that was put before one that has begun would be done out of its turn."""
    if state.direction == "compensation":
        return None
    begun = [name in state.steps for name in names]
    for at, name in enumerate(names):
        if not begun[at] and any(begun[at:]):
            later = next(n for n, b in zip(names[at:], begun[at:], strict=True) if b)
            return f"the definition has step {name!r} before {later!r}, which has begun"
    return None


def _not_undoable(saga: Saga, state: State) -> str | None:
    for name in state.to_compensate:
        if saga.step(name).undo is None:
            return f"step {name!r} has to be undone, and the definition can't"
    return None


def _input(saga: Saga, history: Sequence[Recorded]) -> str | None:
    start = history[0].event
    assert isinstance(start, SagaStarted)
    try:
        saga.input.model_validate(start.input)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        return f"its input is not what the definition wants ({where})"
    return None


_OPEN: Final = """
SELECT saga_id FROM evosaga.open_sagas WHERE saga_id >= $1 ORDER BY saga_id LIMIT $2
"""
