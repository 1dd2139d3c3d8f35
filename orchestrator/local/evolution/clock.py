"""Timestamps in Evolution's format."""

from datetime import UTC, datetime


def timestamp() -> str:
    """Now, in UTC: ``2025-12-05T12:00:00.000Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def false_timestamp() -> str:
    """Now in local time, with UTC's ``Z`` nevertheless, like the webhooks' ``date_time``."""
    return datetime.now().isoformat(timespec="milliseconds") + "Z"
