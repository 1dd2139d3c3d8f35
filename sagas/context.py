"""What a step is called with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic
from uuid import UUID

from typing_extensions import TypeVar

InputT = TypeVar("InputT", covariant=True, default=Any)
ServicesT = TypeVar("ServicesT", covariant=True, default=Any)


@dataclass(frozen=True)  # no slots: Python 3.11 could not call ``StepContext[X, Y](...)`` then
class StepContext(Generic[InputT, ServicesT]):
    """One attempt of one step.

    ``input`` is the saga's input model; ``services`` is what the domain opened for its steps: its
    clients and settings, which the engine hands on and never looks into. ``facts``: what admission
    found. ``results``: what the steps before (and this one, when it is being undone) recorded.
    ``in_doubt``: an earlier attempt may have had its effect; look before you act. ``doubt_age``:
    seconds since the newest attempt whose outcome is unknown; None: there was none. ``last_code``
    is that of the failure before. ``age`` is the saga's, in seconds. ``was_done``, for an undo: the
    step said so, so there is no doubt that it happened.
    """

    saga_id: UUID
    input: InputT
    services: ServicesT
    attempt: int = 1
    in_doubt: bool = False
    last_code: str | None = None
    was_done: bool = False
    age: float = 0.0
    doubt_age: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
