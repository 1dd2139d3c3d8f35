"""Times as Evolution writes them."""

from datetime import UTC, datetime


def timestamp() -> str:
    """Now, in UTC: ``2025-12-05T12:00:00.000Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def false_timestamp() -> str:
    """Now in local time, with the ``Z`` of UTC all the same, as the webhooks' ``date_time`` is."""
    return datetime.now().isoformat(timespec="milliseconds") + "Z"
