"""A cap on the calls a second that upkeep makes to one Evolution server."""

import asyncio
import time


class Pace:
    """Of one server in one round: ``rate`` calls a second, and a page of them at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def page(self, calls: int) -> None:
        """Wait until so many more calls may be made."""
        now = time.monotonic()
        if now < self._free_at:
            await asyncio.sleep(self._free_at - now)
        self._free_at = max(now, self._free_at) + calls / self._rate
