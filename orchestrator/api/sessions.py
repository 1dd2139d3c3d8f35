"""Sessions that were signed out: a copied cookie must not work after its owner signed out.

A session is identified by the signed part of its cookie alone: several spellings of one base64
signature decode to the same bytes.
"""

import hashlib
from datetime import UTC, datetime
from typing import Final

from starlette.requests import HTTPConnection

from evosaga.events.database import Pool


class EndedSessions:
    """Kept in Postgres, for all processes, until the sessions would have expired."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._here: dict[bytes, datetime] = {}

    def knows(self, session: str) -> bool:
        """Whether this process knows that it was signed out."""
        return _digest(session) in self._here

    async def has(self, session: str) -> bool:
        """Whether it was signed out in any process. Raises what Postgres raises."""
        if self.knows(session):
            return True
        return bool(await self._pool.fetchval(_ENDED, _digest(session)))

    async def add(self, session: str, until: datetime) -> None:
        """Sign it out. Raises what Postgres raises; this process remembers it even then."""
        now = datetime.now(UTC)
        kept = {one: end for one, end in self._here.items() if end > now}
        self._here = kept | {_digest(session): until}
        await self._pool.execute(_END, _digest(session), until)


def ended_of(connection: HTTPConnection) -> EndedSessions:
    """The ended sessions of the connection's application."""
    ended: EndedSessions = connection.app.state.ended
    return ended


def _digest(session: str) -> bytes:
    signed = session.rpartition(".")[0]
    return hashlib.sha256(signed.encode("utf-8", "surrogateescape")).digest()


_ENDED: Final = "SELECT true FROM evosaga.ended_sessions WHERE session = $1"
_END: Final = """
WITH over AS (DELETE FROM evosaga.ended_sessions WHERE until < now() - interval '1 day')
INSERT INTO evosaga.ended_sessions (session, until) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""
