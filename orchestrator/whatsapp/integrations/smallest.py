"""The few smallest of very many, found one by one."""

import heapq
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Smallest(Generic[_T]):
    """The ``most`` smallest of all that it is offered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, _T]] = []
        self._offered = 0

    def offer(self, key: float, one: _T) -> _T | None:
        """What is not kept because of it, perhaps itself; of equal keys the first are kept."""
        self._offered += 1
        entry = (-key, -self._offered, one)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
            return None
        return heapq.heappushpop(self._heap, entry)[2]

    def __len__(self) -> int:
        return len(self._heap)

    def drop(self) -> _T:
        """The largest, which is kept no more."""
        return heapq.heappop(self._heap)[2]

    def in_order(self) -> list[_T]:
        """The smallest first."""
        return [one for _, _, one in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
