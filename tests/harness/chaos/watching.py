"""What is looked at while the run goes on: S11, history that changes, QR codes, how far it is."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.redis_clients import masters


@dataclass
class Watcher:
    """Takes a snapshot every few seconds, straight from the servers."""

    pool: Pool
    redis: Redis
    every: float = 2.0
    wrong: list[str] = field(default_factory=list)
    looks: int = 0
    codes: set[str] = field(default_factory=set)
    """QR and pairing codes that were seen where they belong."""
    statuses: Counter[str] = field(default_factory=Counter)
    open_for: float = 0.0
    """The longest time, in seconds, that a saga was seen without any progress."""
    _seen: dict[tuple[UUID, int], str] = field(default_factory=dict)
    _position: int = 0

    async def run(self) -> None:
        """Look again and again; cancel it to stop. An outage is no news here."""
        while True:
            with contextlib.suppress(*TRANSIENT, RedisError, asyncpg.PostgresError):
                await self.look()
            await asyncio.sleep(self.every)

    async def look(self) -> None:
        """One look."""
        async with (
            self.pool.acquire() as one,
            one.transaction(isolation="repeatable_read", readonly=True),
        ):
            for row in await one.fetch(_ROWS_AND_LOG):
                there = "a row" if row["there"] else "no row"
                self.wrong.append(f"saga {row['id']}: {there}, against its log, in one snapshot")
            for row in await one.fetch(_NEW_EVENTS, self._position):
                self._seen[row["saga_id"], row["sequence"]] = row["hash"]
                self._position = row["position"]
            self.statuses = Counter(
                {row["status"]: row["sagas"] for row in await one.fetch(_STATUSES)}
            )
        self.looks += 1
        await self._collect_codes()

    async def nothing_changed(self) -> None:
        """S1: what was seen of the history at some time is there at the end, word for word."""
        now = {(row["saga_id"], row["sequence"]): row["hash"] for row in await self.events()}
        for place, hash_ in self._seen.items():
            if now.get(place) != hash_:
                self.wrong.append(f"saga {place[0]}: event {place[1]} is not what it was")

    async def events(self) -> list[Any]:
        """A hash of every event there is."""
        return list(await self.pool.fetch(_NEW_EVENTS, 0))

    async def _collect_codes(self) -> None:
        for master in await masters(self.redis):
            async for key in master.scan_iter("evosaga:qr:*", count=1000):
                raw: Any = await self.redis.get(key)
                if raw is not None:
                    self.codes |= {str(code) for code in json.loads(raw).values() if code}


# What the log says must be there, against what is there: either side alone is a lie.
_ROWS_AND_LOG: Final = """
WITH touched AS (
    SELECT DISTINCT ON (saga_id) saga_id, type FROM evosaga.saga_events
    WHERE type IN ('step.succeeded', 'compensation.succeeded') AND data ->> 'step' = 'postgres'
    ORDER BY saga_id, sequence DESC
), saved AS (
    SELECT saga_id FROM touched JOIN evosaga.sagas USING (saga_id)
    WHERE saga = 'create-integration' AND type = 'step.succeeded'
), gone AS (
    SELECT (born.data -> 'facts' ->> 'integration_id')::uuid AS saga_id
    FROM touched JOIN evosaga.sagas USING (saga_id)
    JOIN evosaga.saga_events AS born ON born.saga_id = touched.saga_id AND born.sequence = 0
    WHERE saga = 'delete-integration' AND touched.type = 'step.succeeded'
), expected AS (
    SELECT saga_id FROM saved EXCEPT SELECT saga_id FROM gone
)
SELECT coalesce(saga_id, row.id) AS id, row.id IS NOT NULL AS there
FROM expected FULL JOIN healthcare.integrations AS row ON row.id = saga_id
WHERE saga_id IS NULL OR row.id IS NULL
"""
_NEW_EVENTS: Final = """
SELECT saga_id, sequence, position, md5(e::text) AS hash
FROM evosaga.saga_events AS e WHERE position > $1 ORDER BY position
"""
_STATUSES: Final = "SELECT status, count(*) AS sagas FROM evosaga.sagas GROUP BY status"
