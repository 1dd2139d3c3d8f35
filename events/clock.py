"""SQL conditions that hold when Postgres's clock was put back.

A failover to a standby whose clock is behind puts it back. Times written before are then in the
future by the length of that step. A lease or time further ahead than its own period cannot have
been set by the present clock, so it is ignored: nothing waits longer than one period for the clock
to catch up.
"""

from typing import Final

LEEWAY: Final = "interval '1 second'"
"""Overlapping transactions see times that differ by at most their lengths."""

LIVING: Final = f"""(lease_until > now() AND (lease_seconds IS NULL
    OR lease_until <= now() + make_interval(secs => lease_seconds) + {LEEWAY}))"""
"""For a row of ``evosaga.workers``: whether its worker is alive.

An older release does not store the length of its lease; its rows cannot be checked.
"""

PUT_BACK: Final = f"(coalesce(scheduled_at, updated_at) > now() + {LEEWAY})"
"""For a row of ``evosaga.sagas``: whether the clock was put back since its ``next_at`` was set."""
