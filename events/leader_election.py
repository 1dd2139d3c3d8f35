"""Leader election by a lease in Postgres, for work that one of many does.

A leader that was paused may believe for a moment longer that it leads, so what it does must be
harmless when it is done twice. The relay and the scheduler keep their leases in rows of their own,
since they change position or due time in the same statement; when such a lease may be taken is
said here, in ``vacant``.
"""

import time
from typing import Final

from evosaga.events.clock import LEEWAY
from evosaga.events.database import Pool


def vacant(row: str) -> str:
    """SQL: whether the lease in ``row`` is nobody's; ``$3`` is the length of leases in seconds.

    One that ends later than a lease from now was taken before Postgres's clock was put back.
    """
    return f"""({row}.leader IS NULL OR {row}.lease_until < now()
        OR {row}.lease_until > now() + make_interval(secs => $3) + {LEEWAY})"""


class Candidacy:
    """One candidate for one task. Times are in seconds."""

    def __init__(self, pool: Pool, task: str, me: str, *, lease: float = 5.0) -> None:
        self._pool = pool
        self._task = task
        self._me = me
        self._lease = lease
        self._leads = False
        self._ask_at = 0.0

    async def held(self) -> bool:
        """Whether this candidate leads. Asks Postgres only now and then. Raises what it raises."""
        before = time.monotonic()
        if before >= self._ask_at:
            self._leads = False
            leads = await self._pool.fetchval(_LEAD, self._task, self._me, self._lease)
            self._leads = bool(leads)
            self._ask_at = before + self._lease / (2 if leads else 4)
        return self._leads

    async def resign(self) -> None:
        """Let another lead at once."""
        self._leads, self._ask_at = False, 0.0
        await self._pool.execute(_RESIGN, self._task, self._me)


_LEAD: Final = f"""
INSERT INTO evosaga.leaders AS lease (task, leader, lease_until)
VALUES ($1, $2, now() + make_interval(secs => $3))
ON CONFLICT (task) DO UPDATE SET leader = $2, lease_until = excluded.lease_until
WHERE lease.leader = $2 OR {vacant("lease")}
RETURNING true
"""  # noqa: S608  # constants only
_RESIGN: Final = """
UPDATE evosaga.leaders SET leader = NULL, lease_until = NULL WHERE task = $1 AND leader = $2
"""
