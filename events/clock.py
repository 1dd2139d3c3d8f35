"""Postgres's clock may be put back, as by a failover to a standby whose clock is behind.

What was written before stands ahead of the clock then, as far as the step was long. A lease or a
time that lies further ahead than its own period can't have been set by the clock as it is now, so
it is not believed: nothing waits longer than one period for the clock to catch up.
"""

from typing import Final

LEEWAY: Final = "interval '1 second'"
"""Transactions that overlap see times that differ by their lengths."""

LIVING: Final = f"""(lease_until > now() AND (lease_seconds IS NULL
    OR lease_until <= now() + make_interval(secs => lease_seconds) + {LEEWAY}))"""
"""Of a row of ``evosaga.workers``: whether its worker shows a sign of life.

An older release does not say how long its lease is, so there is nothing to judge it by.
"""

PUT_BACK: Final = f"(coalesce(scheduled_at, updated_at) > now() + {LEEWAY})"
"""Of a row of ``evosaga.sagas``: whether the clock was put back since its ``next_at`` was set."""
