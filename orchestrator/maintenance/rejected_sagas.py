"""Rejected sagas are kept for a while and up to a number, so that a flood of them ends.

Nothing was touched for a rejected saga: its row and its one event are an answer to look up. Of
those that are too old, or too many for their organization, only the id and the hash of the command
stay, in ``evosaga.refused``: the same command again still changes nothing, and another one under
the same id is still refused. What has not been told on the stream of events yet is kept until it
is, and so is the newest one that has been: it shows that the log has not gone back. While it has,
nothing is archived. The events leave through the door that the database keeps for archiving.
"""

from dataclasses import dataclass
from typing import Final

import structlog

from evosaga.events import background, streams
from evosaga.events.connection_errors import reason
from evosaga.events.database import Pool
from evosaga.events.leader_election import Candidacy
from evosaga.orchestrator.engine.transient_errors import is_transient

_logger = structlog.get_logger("evosaga.rejected")
_EVERY: Final = 300.0
_AT_ONCE: Final = 500
_TASK: Final = "rejected"


@dataclass(slots=True)
class RejectedSagaArchive:
    """``keep``: seconds that one is kept, 0: for ever; ``most``: so many of an organization."""

    pool: Pool
    me: str
    keep: float
    most: int
    every: float = _EVERY

    async def run(self) -> None:
        """Look now and then, one worker at a time; cancel it to stop."""
        leadership = Candidacy(self.pool, _TASK, self.me, lease=2 * self.every)

        async def turn() -> float:
            try:
                while await leadership.held() and await self.archive() == _AT_ONCE:
                    background.obey_cancel()
            except Exception as trouble:  # housekeeping is never a reason to stop a worker
                tell = _logger.warning if is_transient(trouble) else _logger.error
                tell("archiving_retrying", reason=reason(trouble))
            return self.every

        await background.repeat(turn, first=self.every)

    async def archive(self) -> int:
        """Take away some that are too old or too many; how many. Raises what Postgres raises."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL evosaga.archiving = 'on'")
            gone: int = await connection.fetchval(
                _ARCHIVE, self.keep, self.most, _AT_ONCE, streams.EVENTS
            )
        if gone:
            _logger.info("rejected sagas archived", sagas=gone)
        return gone


# ``nth`` counts the newest first. Whoever is read at this moment is left for the next time.
_ARCHIVE: Final = """
WITH ranked AS (
    SELECT saga_id, created_at, row_number() OVER (
        PARTITION BY organization_id ORDER BY created_at DESC, saga_id DESC) AS nth
    FROM evosaga.sagas WHERE status = 'rejected'
), chosen AS (
    SELECT saga.saga_id, saga.command_hash FROM evosaga.sagas AS saga
    JOIN ranked USING (saga_id)
    WHERE (nth > $2 OR ($1 > 0 AND ranked.created_at < now() - make_interval(secs => $1)))
      AND NOT EXISTS (
          SELECT FROM evosaga.saga_events AS event
          WHERE event.saga_id = saga.saga_id AND event.position >=
              coalesce((SELECT position FROM evosaga.relay WHERE stream = $4), 0))
      AND NOT EXISTS (SELECT FROM evosaga.relay WHERE went_back_at IS NOT NULL)
    ORDER BY ranked.created_at LIMIT $3
    FOR UPDATE OF saga SKIP LOCKED
), remembered AS (
    INSERT INTO evosaga.refused (saga_id, command_hash)
    SELECT saga_id, command_hash FROM chosen ON CONFLICT DO NOTHING
), untold AS (
    DELETE FROM evosaga.saga_events AS event USING chosen WHERE event.saga_id = chosen.saga_id
), gone AS (
    DELETE FROM evosaga.sagas AS saga USING chosen WHERE saga.saga_id = chosen.saga_id
    RETURNING saga.saga_id
)
SELECT count(*) FROM gone
"""
