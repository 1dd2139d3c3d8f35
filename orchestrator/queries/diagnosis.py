"""What is known of a saga when somebody asks why it is where it is, and what an answer is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evosaga.events.model import Recorded
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.sagas.definition import Saga
from evosaga.sagas.explainer import NOTHING, PLAIN, Explainer, Explanation


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``headline`` and ``details`` are sentences, the most telling first.

    ``next_at``: when it goes on by itself, as far as anybody knows; when ``in_flight``, an attempt
    is out and that is its time limit. ``cure``: what a person can do about it; None when there is
    nothing to do.
    """

    headline: str
    details: tuple[str, ...] = ()
    next_at: datetime | None = None
    cure: str | None = None
    in_flight: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "headline": self.headline,
            "details": list(self.details),
            "next_at": self.next_at.isoformat() if self.next_at else None,
            "cure": self.cure,
            "in_flight": self.in_flight,
        }


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers: who is alive, whose lease has run out, and which definitions each has.

    ``knows`` leaves out the workers that did not say.
    """

    alive: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    knows: dict[str, frozenset[tuple[str, int]]] = field(default_factory=dict)

    def can_run(self, saga: str, version: int) -> bool | None:
        """Whether a living worker has that definition; None when nobody can say."""
        said = [self.knows[worker] for worker in self.alive if worker in self.knows]
        if any((saga, version) in known for known in said):
            return True
        return False if said and len(said) == len(self.alive) else None


@dataclass(frozen=True, slots=True)
class SagaFacts:
    """All that is known of one saga.

    ``saga``: its definition, None when this release has none. ``history``: None when this release
    can't read it. ``ahead``: the saga it waits behind, if any. ``explain``: what its domain can
    add, and ``after`` what that has said of a completed one.
    """

    view: SagaView
    saga: Saga | None
    history: Sequence[Recorded] | None
    company: Workers
    now: datetime
    ahead: SagaView | None = None
    explain: Explainer = PLAIN
    after: Explanation = NOTHING
    beside: int = 0
    """Sagas of the same organization that workers drive at the moment."""


def who_could(case: SagaFacts) -> tuple[str, ...]:
    """Whether any living worker could drive the saga, as a sentence."""
    view, alive = case.view, len(case.company.alive)
    if not alive:
        return ("No worker is alive.",)
    match case.company.can_run(view.saga, view.version):
        case True:
            return ("A living worker has that definition, and drives it.",)
        case False:
            return (f"None of the {alive} living workers has that definition.",)
    return ()


def ago(at: datetime, case: SagaFacts) -> str:
    """How long ago that was."""
    return span((case.now - at).total_seconds())


def span(seconds: float) -> str:
    """A length of time in a word or two."""
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
