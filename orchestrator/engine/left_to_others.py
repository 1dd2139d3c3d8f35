"""Sagas that this worker can't go on with and others may: see ``NotOnThisWorker``."""

import time
from typing import Final
from uuid import UUID

_PAUSE: Final = 60.0
"""Seconds that such a saga is left to others before this worker looks at it again."""
_MOST: Final = 10_000


class LeftToOthers:
    """The sagas that this worker leaves alone for a while."""

    def __init__(self) -> None:
        self._until: dict[UUID, float] = {}

    def note(self, saga_id: UUID) -> None:
        """Leave this one alone."""
        self._until.pop(saga_id, None)
        if len(self._until) >= _MOST:
            del self._until[next(iter(self._until))]
        self._until[saga_id] = time.monotonic() + _PAUSE

    @property
    def now(self) -> frozenset[UUID]:
        """Those that are left alone at this moment."""
        if not self._until:
            return frozenset()
        moment = time.monotonic()
        self._until = {id_: until for id_, until in self._until.items() if until > moment}
        return frozenset(self._until)
