"""Publishes the load, and keeps a journal of what was acknowledged, by Redis or by the API.

What the API has answered with 2xx is safe for good. A raw XADD is unconfirmed until its saga can be
seen: after Redis has lost data the publisher sends again, under the same id, what has no saga, as
any publisher should.
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.database import Pool
from tests.harness.chaos.evidence import Published
from tests.harness.chaos.plan import Plan, Publish

_PAUSE: Final = 0.1
_AGAIN: Final = ("create", "delete", "cancel", "replay")


@dataclass
class Publisher:
    """``told`` is its journal, which is also written to a file, and to the disk, line by line."""

    plan: Plan
    redis: Redis
    http: aiohttp.ClientSession
    api: str
    """The API's address, by way of the proxy before it."""
    journal: Path
    told: dict[tuple[str, bytes], Published] = field(default_factory=dict)
    repeated: int = 0
    """Commands that were published more than once."""
    again: int = 0
    """Commands that were sent again since Redis had lost them."""
    refused: int = 0
    """Tries that nobody acknowledged."""
    declined: dict[str, str] = field(default_factory=dict)
    """Commands that the API had something against, by id: its code."""
    by_http: int = 0
    """Commands that the API has accepted."""
    _posting: set["asyncio.Task[None]"] = field(default_factory=set)

    async def run(self, started: float) -> None:
        """Publish all of the plan, each when its time has come, and later when Redis is away."""
        loop = asyncio.get_running_loop()
        with self.journal.open("ab", buffering=0) as file:
            for publish in self.plan.load:
                await asyncio.sleep(max(0.0, started + publish.at - loop.time()))
                if publish.http:
                    # Not waited for: the stream must not stand still because the API does.
                    self._posting.add(task := asyncio.create_task(self._post(publish, file)))
                    task.add_done_callback(self._posting.discard)
                else:
                    await self._publish(publish.id, publish.kind, publish.body, file)
            await asyncio.gather(*self._posting)

    async def send(self, kind: str, id_: str, type_: str, data: dict[str, Any]) -> None:
        """Publish a command that is no part of the plan."""
        body = json.dumps({"id": id_, "type": type_, "data": data}).encode()
        with self.journal.open("ab", buffering=0) as file:
            await self._publish(id_, kind, body, file)

    async def make_good(self, pool: Pool, lost_at: float) -> int:
        """Send again what was acknowledged before Redis lost data, and has no saga; how many."""
        rows = await pool.fetch(_FATES)
        known = {row["id"] for row in rows}
        missing = [
            told
            for told in list(self.told.values())
            if told.kind in _AGAIN and not told.http and told.at <= lost_at and told.id not in known
        ]
        with self.journal.open("ab", buffering=0) as file:
            for told in missing:
                await self._publish(told.id, told.kind, told.body, file)
        self.again += len(missing)
        return len(missing)

    async def _publish(self, id_: str, kind: str, body: bytes, file: Any) -> None:
        while True:
            try:
                await self.redis.xadd(streams.COMMANDS, {streams.FIELD: body})
                break
            except (RedisError, OSError, TimeoutError):
                self.refused += 1
                await asyncio.sleep(_PAUSE)
        self._note(Published(id_, kind, body, time.time()), file)

    async def _post(self, publish: Publish, file: Any) -> None:
        """POST it until the API says yes or no."""
        while True:
            status, code = await self._answer(publish.body)
            if status < 300:
                self.by_http += 1
                told = Published(publish.id, publish.kind, publish.body, time.time(), http=True)
                return self._note(told, file)
            if status < 500 and status != 429:
                self.declined[publish.id] = code
                return None
            self.refused += 1
            await asyncio.sleep(_PAUSE * 3)

    async def _answer(self, body: bytes) -> tuple[int, str]:
        """The status, 503 for none, and the problem's code."""
        try:
            async with self.http.post(f"{self.api}/commands", data=body) as answer:
                told = await answer.json(content_type=None)
                return answer.status, str(told.get("code", ""))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return 503, ""

    def _note(self, told: Published, file: Any) -> None:
        key = (told.id, told.body)
        self.repeated += key in self.told
        before = self.told.get(key)
        self.told[key] = replace(told, http=told.http or (before is not None and before.http))
        line = [told.at, told.id, told.kind, told.body.decode("latin-1")]
        file.write(json.dumps(line).encode() + b"\n")
        os.fdatasync(file.fileno())


_FATES: Final = """
SELECT command_id AS id FROM evosaga.sagas
UNION ALL
SELECT data ->> 'by' FROM evosaga.saga_events
WHERE type IN ('saga.resumed', 'saga.cancel_requested')
"""
