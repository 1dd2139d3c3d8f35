"""Delivers messages to receivers, at least once: one leader, retries with growing pauses.

Each receiver has a task of its own, so that one that hangs keeps none of the others waiting. What
is taken twice, since a leader died before it wrote down the answer, has the same ``webhook-id``.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import background
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.leader_election import Candidacy
from evosaga.orchestrator.config.receivers import PHONES, Receiver, receivers_of
from evosaga.orchestrator.config.settings import Settings, split_secrets
from evosaga.orchestrator.maintenance.alerts import event_feed, messages, outbox, sending

_logger = structlog.get_logger("evosaga.alerts")
_LEASE: Final = 12.0
_AT_ONCE: Final = 8
_BATCH: Final = 64
_TIDY_EVERY: Final = 600.0


@dataclass(frozen=True, slots=True)
class Posting:
    """How messages go out. ``secrets`` are those that keys are derived from."""

    receivers: Mapping[str, Receiver]
    secrets: Sequence[str] = ()
    private: bool = False
    runbook: str = ""
    timeout: float = 10.0

    @staticmethod
    def of(settings: Settings) -> "Posting":
        """As the settings have it."""
        secrets = split_secrets(settings.secret_key) if settings.secret_key else []
        private, runbook = settings.receivers_private, settings.runbook_url
        return Posting(receivers_of(settings), secrets, private, runbook)

    async def send(self, name: str, message_id: str, type_: str, body: str) -> sending.Answer:
        """Post one message."""
        receiver = self.receivers[name]
        content, kind = messages.rendered(receiver, type_, json.loads(body))
        keys = messages.keys_of(name, receiver, self.secrets)
        headers = messages.signed(message_id, int(time.time()), content, keys)
        # Whoever set the older variable to a private address goes on being told.
        private = self.private or name == PHONES
        url = receiver.url.get_secret_value()
        return await sending.post(
            url,
            content,
            {"content-type": kind, **headers},
            private=private,
            timeout=self.timeout,
        )


@dataclass(slots=True)
class Dispatcher:
    """One candidate for delivering; not run where no receiver is configured."""

    pool: Pool
    redis: Redis
    me: str
    posting: Posting
    tick: float = 1.0
    _at_work: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _tidied: float = field(default=float("-inf"), init=False)

    async def run(self) -> None:
        """Deliver for ever; cancel it to stop. Trouble with the stores is waited out."""
        candidacy = Candidacy(self.pool, "deliveries", self.me, lease=_LEASE)

        async def turn() -> float:
            try:
                if await candidacy.held():
                    await self.round()
            except TRANSIENT as trouble:
                _logger.warning("deliveries_retrying", reason=reason(trouble))
            except Exception as stumble:  # no reason to stop a worker
                _logger.error("deliveries_failed", error=type(stumble).__name__)
            return self.tick

        try:
            await background.repeat(turn)
        finally:
            await background.end(list(self._at_work.values()))

    async def round(self) -> None:
        """Write what is to be told, and begin to send what is due to receivers that are free."""
        told = [name for name, one in self.posting.receivers.items() if one.alerts]
        if told:  # else they wait for a process that has somebody to tell
            await outbox.announce(self.pool, told, self.posting.runbook)
        for name, receiver in self.posting.receivers.items():
            if receiver.events:
                try:
                    await event_feed.take(self.pool, self.redis, name, receiver)
                except (RedisError, OSError, TimeoutError) as trouble:
                    _logger.warning("deliveries_retrying", reason=reason(trouble))
            task = self._at_work.get(name)
            if task is None or task.done():
                self._at_work[name] = asyncio.create_task(self._deliver(name), name=name)
        if time.monotonic() - self._tidied > _TIDY_EVERY:
            self._tidied = time.monotonic()
            gone = await outbox.abandon(self.pool, list(self.posting.receivers))
            for name, number in gone.items():
                said = {"receiver": name, "messages": number, "reason": outbox.GONE}
                _logger.error("delivery_given_up", **said)
            await outbox.tidy(self.pool)

    async def rest(self) -> None:
        """Wait until what was begun has been sent."""
        await asyncio.gather(*self._at_work.values())

    async def _deliver(self, name: str) -> None:
        try:
            while rows := await outbox.due(self.pool, name, _BATCH):
                limit = asyncio.Semaphore(_AT_ONCE)
                taken = await asyncio.gather(*(self._one(name, row, limit) for row in rows))
                if not any(taken):
                    return
        except TRANSIENT as trouble:
            _logger.warning("deliveries_retrying", reason=reason(trouble))
        except Exception as stumble:
            _logger.error("deliveries_failed", error=type(stumble).__name__)

    async def _one(self, name: str, row: asyncpg.Record, limit: asyncio.Semaphore) -> bool:
        async with limit:
            try:
                answer = await self.posting.send(name, row["message_id"], row["type"], row["body"])
            except Exception as fault:  # ours; it must not keep the others of the batch waiting
                answer = sending.Answer(False, f"sending it raised {type(fault).__name__}")
        if answer.ok:
            await outbox.delivered(self.pool, row["id"])
            return True
        gave_up = await outbox.failed(self.pool, row, answer.error, answer.retry_after)
        # The URL stays out of the log: it often is enough to post there.
        say = _logger.error if gave_up else _logger.warning
        what = "delivery_given_up" if gave_up else "delivery_retrying"
        say(what, receiver=name, type=row["type"], tries=row["tries"] + 1, reason=answer.error)
        return False
