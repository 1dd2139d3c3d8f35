"""A time as people write it, the same for the command line, HTTP and the dashboard. Pure."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, now: datetime) -> datetime:
    """ISO 8601 (without a zone: UTC), or so long before ``now``: ``90s``, ``30m``, ``2h``, ``7d``.

    Raises ``ValueError`` with a sentence that shows how to write one.
    """
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        said = f"{shown!r} is no time: write 2025-12-05T12:00Z, 30m, 2h or 7d"
        raise ValueError(said) from None
