"""The header ``Retry-After``: a number of seconds, or a date (RFC 9110, 10.2.3)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST: Final = 300.0
"""Seconds; who asks for more is asked again then."""


def seconds_of(headers: Mapping[str, str], longest: float = LONGEST) -> float | None:
    """How long to stay away, in seconds from 0 to ``longest``; None when nothing sensible is said.

    A date is read against the answer's own ``Date``, since the two clocks may differ.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        at = _moment(text)
        if at is None:
            return None
        now = _moment(headers.get("date", "")) or datetime.now(UTC)
        seconds = (at - now).total_seconds()
    return None if seconds != seconds else min(longest, max(0.0, seconds))  # no NaN


def _moment(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
