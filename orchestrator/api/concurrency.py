"""Limits on open responses: waits for a saga, and event streams."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends

from evosaga.orchestrator.api.auth import Caller, CurrentCaller
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.saga_watcher import Watching


@dataclass(frozen=True, slots=True)
class Limit:
    """The most of one kind in this process. All keys of an organization share one count."""

    code: str
    noun: str
    of_a_key: int
    of_an_organization: int


STREAMS: Final = "streams"
WAITS: Final = "waits"
MOST: Final = {
    STREAMS: Limit("too_many_streams", "streams open", 100, 100),
    WAITS: Limit("too_many_waits", "requests that wait for a saga", 500, 100),
}


@contextmanager
def held(taken: Counter[Any], what: str, who: Caller) -> Iterator[None]:
    """Hold one place while inside. Raises the 429."""
    most = MOST[what]
    places: list[tuple[tuple[str, str], int, str]] = [(("key", who.name), most.of_a_key, "key")]
    if who.organization_id is not None:
        of_all = most.of_an_organization
        places.append((("organization", str(who.organization_id)), of_all, "organization"))
    for holder, limit, word in places:
        if taken[what, holder] >= limit:
            detail = f"this {word} has {limit} {most.noun}; let some end"
            raise Problem(most.code, detail, headers={"Retry-After": "5"})
    for holder, _, _ in places:
        taken[what, holder] += 1
    try:
        yield
    finally:
        for holder, _, _ in places:
            taken[what, holder] -= 1
            if not taken[what, holder]:
                del taken[what, holder]


async def _stream(who: CurrentCaller, watch: Watching) -> AsyncIterator[None]:
    with held(watch.held, STREAMS, who):
        yield


PlaceOfAStream = Annotated[None, Depends(_stream)]
"""Route dependency; the place is released when the response has been sent or has broken off."""
