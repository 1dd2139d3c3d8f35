"""Throttle: how often an integration is looked at while webhooks pour in.

Pure: monotonic seconds in, seconds out.
"""

from dataclasses import dataclass
from typing import Final

from evosaga.orchestrator.whatsapp.integrations.connection import ConnectionObservation
from evosaga.orchestrator.whatsapp.webhooks.payloads import MergedHint

SOONEST: Final = 0.25
SELDOMEST: Final = 60.0
"""Seconds between two looks at one integration."""
_TRIES: Final = 6


@dataclass(slots=True)
class Throttle:
    """How the looks at one integration went."""

    at: float = float("-inf")
    idle: int = 0
    """Looks in a row that changed nothing."""
    state: str | None = None

    def wait(self, heard: MergedHint, now: float) -> float:
        """Seconds until a look for these hints makes sense."""
        saw = "close" if heard.state == "refused" else heard.state
        news = saw != "connecting" and saw != self.state
        pause = SOONEST if news else min(SELDOMEST, SOONEST * (1 << min(self.idle, 10)))
        return max(0.0, self.at + pause - now)


def again_in(
    said: str, heard: MergedHint, seen: ConnectionObservation, channel: str, tries: int
) -> float | None:
    """After so many seconds another look is needed; None when this one settled it.

    Evolution reports that a phone is connected a moment before its database knows which.
    """
    if said == "lost":
        return 0.1
    if seen.state == "unknown":
        return min(SELDOMEST, SOONEST * (1 << min(tries, 10)))
    unconfirmed = heard.state == "open" and not seen.paired(channel)
    if unconfirmed and seen.state in ("open", "connecting") and tries < _TRIES:
        return 0.1 * (1 << tries)
    return None
