"""How a saga is written down.

The steps of a saga read ``compensatable* pivot? retryable*`` (Chris Richardson's terms):

- a **compensatable** step can be undone, so it comes while the saga may still turn round;
- a **pivot** is the point of no return: when it succeeds, the saga only goes forward;
- a **retryable** step comes after that and is tried until it works or a person looks.

A definition in another order is refused when its module is imported, since a saga that could
not roll back would only be noticed on the worst day.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Generic, TypeAlias
from uuid import UUID

from evosaga.sagas import where
from evosaga.sagas.admission import Admission as Admission
from evosaga.sagas.admission import AdmissionHeld as AdmissionHeld
from evosaga.sagas.admission import Admit, AdmitTogether, InputT, OnConflict, Rehearse, ServicesT
from evosaga.sagas.admission import Refusal as Refusal
from evosaga.sagas.context import StepContext
from evosaga.sagas.limits import Limit
from evosaga.sagas.outcome import Finding, Outcome

Effect: TypeAlias = Callable[[StepContext[InputT, ServicesT]], Awaitable[Outcome]]
"""``async (StepContext) -> Outcome``: an effect outside our Postgres, at least once."""

BatchEffect: TypeAlias = Callable[
    [Any, Sequence[StepContext[InputT, ServicesT]]], Awaitable[Sequence[Outcome]]
]
"""``async (connection, [StepContext]) -> [Outcome]``, one outcome a context, in order."""


Probe: TypeAlias = Callable[[StepContext[InputT, ServicesT]], Awaitable[Finding]]
"""``async (StepContext) -> Finding``: looks whether the effect is there, and changes nothing."""


SkipWhen: TypeAlias = Callable[[InputT], Mapping[str, Any] | None]
"""``(input) -> result``: what is recorded where this input leaves nothing to do; None: do it."""


class DefinitionError(Exception):
    """A saga was written down wrongly. The author of the definition must mend it."""


class Kind(StrEnum):
    COMPENSATABLE = "compensatable"
    PIVOT = "pivot"
    RETRYABLE = "retryable"


@dataclass(frozen=True)
class InCommit(Generic[InputT, ServicesT]):
    """An effect in our own Postgres that joins the commit of its event: exactly once.

    It is set-based, because the commits of many sagas share one transaction. It must not touch
    anything but the given connection. ``meaning`` says what an exception of it comes to, None: that
    nobody knows it, and it is an attempt that failed.
    """

    run: BatchEffect[InputT, ServicesT]
    meaning: Callable[[Exception], Outcome | None] = lambda error: None


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently: exponential, with jitter added by the engine. Seconds."""

    attempts: int = 5
    first: float = 0.2
    factor: float = 3.0
    cap: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (1, 2, ...), before jitter."""
        return float(min(self.cap, self.first * self.factor ** min(attempt - 1, 30)))


@dataclass(frozen=True)
class Step(Generic[InputT, ServicesT]):
    """One step. ``timeout`` is in seconds and bounds one attempt in either direction.

    ``do`` executes, ``undo`` compensates, and ``probe`` says what is really there; a replay asks
    it before it believes that a step which was done still is. ``skip_when`` tells from the
    saga's input alone that there is nothing to do: such a step is recorded in the commit of the one
    before it, without an attempt of its own.
    """

    name: str
    kind: Kind
    do: Effect[InputT, ServicesT] | InCommit[InputT, ServicesT]
    undo: Effect[InputT, ServicesT] | InCommit[InputT, ServicesT] | None = None
    retry: Retry = field(default_factory=Retry)
    timeout: float = 40.0
    probe: Probe[InputT, ServicesT] | None = None
    skip_when: SkipWhen[InputT] | None = None
    undo_retry: Retry | None = None
    """How its undo is tried; None: as the step is."""
    limits: tuple[Limit, ...] = ()
    """Where each of its attempts, of the undo as well, needs a place."""

    def retry_of(self, direction: str) -> Retry:
        """How it is tried ``forward``, or in ``compensation``."""
        return self.retry if direction == "forward" else self.undo_retry or self.retry


def compensatable(
    name: str,
    *,
    do: Effect[InputT, ServicesT] | InCommit[InputT, ServicesT],
    undo: Effect[InputT, ServicesT] | InCommit[InputT, ServicesT],
    retry: Retry | None = None,
    undo_retry: Retry | None = None,
    timeout: float = 40.0,
    probe: Probe[InputT, ServicesT] | None = None,
    limits: Sequence[Limit] = (),
) -> Step[InputT, ServicesT]:
    """A step that can be undone by ``undo``, tried as ``undo_retry`` says. Timeout in seconds."""
    return Step(
        name,
        Kind.COMPENSATABLE,
        do,
        undo,
        retry or Retry(),
        timeout,
        probe,
        undo_retry=undo_retry,
        limits=tuple(limits),
    )


def pivot(
    name: str,
    *,
    do: Effect[InputT, ServicesT] | InCommit[InputT, ServicesT],
    retry: Retry | None = None,
    timeout: float = 40.0,
    probe: Probe[InputT, ServicesT] | None = None,
    limits: Sequence[Limit] = (),
) -> Step[InputT, ServicesT]:
    """The point of no return. Timeout in seconds."""
    tries = retry or Retry(attempts=10)
    return Step(name, Kind.PIVOT, do, None, tries, timeout, probe, limits=tuple(limits))


def retryable(
    name: str,
    *,
    do: Effect[InputT, ServicesT] | InCommit[InputT, ServicesT],
    retry: Retry | None = None,
    timeout: float = 40.0,
    probe: Probe[InputT, ServicesT] | None = None,
    skip_when: SkipWhen[InputT] | None = None,
    limits: Sequence[Limit] = (),
) -> Step[InputT, ServicesT]:
    """A step that is tried until it works; it can't turn the saga round. Timeout in seconds."""
    return Step(
        name,
        Kind.RETRYABLE,
        do,
        None,
        retry or Retry(attempts=20),
        timeout,
        probe,
        skip_when,
        limits=tuple(limits),
    )


@dataclass(frozen=True)
class Saga(Generic[InputT, ServicesT]):
    """One version of one saga: the command that starts it, and its steps in order."""

    name: str
    version: int
    command: str
    input: type[InputT]
    """A pydantic model: what the command's ``data`` must look like."""
    admit: Admit[ServicesT, InputT] | AdmitTogether[ServicesT] | None = None
    steps: tuple[Step[InputT, ServicesT], ...] = ()
    internal: bool = False
    """We start it ourselves, to keep things true; nobody else is told of its command, and from
    outside it is obeyed only when the log has it as the follow-up of an event."""
    background: bool = False
    """It waits for time to pass and does little else, so one that is old is no sign of trouble."""
    business_key: Callable[[InputT], str] | None = None
    """Instead of ``admit``, where nothing needs to be looked at before: what only one open saga of
    this name may have, made from its input. Without either, a command waits for no other."""
    on_conflict: OnConflict = "refuse"
    """What becomes of a command whose business key an open saga has: ``refuse``, ``wait`` or
    ``supersede``, or one of these for each saga that may be in its way, by name."""
    key_scope: str | None = None
    """Sagas of one scope share their business keys; without it each name has its own."""
    organization: Callable[[InputT], UUID | None] | None = None
    """Whose command it is. An API key of an organization may give it for its own; without this
    function, or where it says None, only keys of no organization may."""
    result: type[Any] | None = None
    """A pydantic model of what the saga comes to: its fields are filled from the results of its
    steps, the later step's where two have one name. What doesn't fit parks it as ``bad_result``."""
    rehearse: Rehearse[ServicesT, InputT] | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    """What the patterns of ``input`` ask for, in words for people."""

    defined_at: str = field(default="", compare=False, repr=False)
    """File and line, for errors about it."""

    def __post_init__(self) -> None:
        if not self.defined_at:
            object.__setattr__(self, "defined_at", where.caller())
        _refuse_wrong_order(self)
        _refuse_wrong_policy(self)

    def step(self, name: str) -> Step[InputT, ServicesT]:
        """The step of that name. Raises ``KeyError`` when this version has none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"{self.name} v{self.version} has no step named {name!r}")


def limited(saga: Saga[InputT, ServicesT], limits: Sequence[Limit]) -> Saga[InputT, ServicesT]:
    """The same saga with more limits at each step that calls something."""
    steps = tuple(
        step
        if isinstance(step.do, InCommit)
        else replace(step, limits=tuple(dict.fromkeys((*step.limits, *limits))))
        for step in saga.steps
    )
    return replace(saga, steps=steps)


def admission_by_key(saga: Saga[InputT, ServicesT]) -> Admit[ServicesT, InputT]:
    """How commands are admitted whose definition has no admission of its own."""

    async def by_key(
        _connection: Any, _services: object, asked: Sequence[tuple[UUID, Any]]
    ) -> Sequence[Admission | Refusal]:
        scope = saga.key_scope or saga.name
        return [
            Admission(
                f"{scope}/{saga.business_key(data) if saga.business_key else saga_id}",
                saga.organization(data) if saga.organization else None,
            )
            for saga_id, data in asked
        ]

    return by_key


def _refuse_wrong_order(saga: Saga) -> None:
    where = f"saga {saga.name!r} v{saga.version}"
    if saga.admit is not None and saga.business_key is not None:
        raise DefinitionError(f"{where} has admit and business_key: let admit give the key")
    if not saga.steps:
        raise DefinitionError(f"{where} has no steps")
    if saga.version < 1:
        raise DefinitionError(f"{where}: versions start at 1")
    names = [step.name for step in saga.steps]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DefinitionError(f"{where} names a step twice: {', '.join(sorted(twice))}")
    order = {Kind.COMPENSATABLE: 0, Kind.PIVOT: 1, Kind.RETRYABLE: 2}
    for before, after in zip(saga.steps, saga.steps[1:], strict=False):
        if order[after.kind] < order[before.kind]:
            raise DefinitionError(
                f"{where}: {after.kind} step {after.name!r} comes after {before.kind} step "
                f"{before.name!r}; the order is compensatable* pivot? retryable*"
            )
    if sum(step.kind is Kind.PIVOT for step in saga.steps) > 1:
        raise DefinitionError(f"{where} has more than one pivot")
    for step in saga.steps:
        if (step.kind is Kind.COMPENSATABLE) != (step.undo is not None):
            raise DefinitionError(
                f"{where}: step {step.name!r} is {step.kind} and must"
                f"{'' if step.kind is Kind.COMPENSATABLE else ' not'} have an undo"
            )
        tries = [retry.attempts for retry in (step.retry, step.undo_retry) if retry is not None]
        if step.timeout <= 0 or min(tries) < 1:
            raise DefinitionError(f"{where}: step {step.name!r} needs a timeout and an attempt")
        if step.limits and isinstance(step.do, InCommit):
            raise DefinitionError(
                f"{where}: step {step.name!r} joins the commit, so it can't wait for a place: "
                "give limits to steps that call something"
            )
        if step.undo_retry is not None and step.undo is None:
            raise DefinitionError(f"{where}: step {step.name!r} has undo_retry and no undo")


def _refuse_wrong_policy(saga: Saga) -> None:
    where = f"saga {saga.name!r} v{saga.version}"
    declared = saga.on_conflict
    answers = [declared] if isinstance(declared, str) else list(declared.values())
    if wrong := sorted(set(answers) - {"refuse", "wait", "supersede"}):
        raise DefinitionError(
            f"{where}: on_conflict is {wrong[0]!r}; it is refuse, wait or supersede, or one of "
            "these for each saga that may be in its way"
        )
    keyed = saga.admit is not None or saga.business_key is not None
    if (saga.on_conflict != "refuse" or saga.key_scope is not None) and not keyed:
        raise DefinitionError(
            f"{where} says what to do when its business key is taken, and has none: give it "
            "business_key"
        )
    if saga.key_scope is not None and saga.admit is not None:
        raise DefinitionError(f"{where} has admit and key_scope: let admit give the key")
