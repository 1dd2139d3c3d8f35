"""What a domain can say of its sagas beyond what the engine knows, for ``why`` and for timelines.

A record of functions with plain defaults: a domain replaces those it has an answer to. Whatever
they say is shown to people as it is.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

from evosaga.events.database import Queryable


@dataclass(frozen=True, slots=True)
class HeldStep:
    """A step, or its undo, whose last attempt was held.

    ``done``: the saga's steps that are done. ``in_doubt``: an attempt of this one may have had its
    effect. ``facts``: what admission found.
    """

    saga: str
    step: str
    undo: bool
    code: str
    message: str
    in_doubt: bool
    done: frozenset[str]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """More sentences on where a saga is, and what a person can do about it; None: nothing."""

    details: tuple[str, ...] = ()
    cure: str | None = None


NOTHING: Final = Explanation()
Note: TypeAlias = Callable[[Mapping[str, Any]], str]


def no_note(_result: Mapping[str, Any]) -> str:
    """Nothing to say about any result."""
    return ""


def _not_held(_held: HeldStep) -> Explanation:
    return NOTHING


async def _not_after(_pool: Queryable, _saga: str, _id: UUID, _now: datetime) -> Explanation:
    return NOTHING


@dataclass(frozen=True, slots=True)
class Explainer:
    """``note``: what is worth knowing of a step's result. ``held``: what a held step waits for.

    ``completed``: how that is now which a completed saga has made, by the saga's name and id;
    raises what Postgres raises.
    """

    note: Note = no_note
    held: Callable[[HeldStep], Explanation] = _not_held
    completed: Callable[[Queryable, str, UUID, datetime], Awaitable[Explanation]] = _not_after


PLAIN: Final = Explainer()
"""Of a domain that has nothing to add."""
