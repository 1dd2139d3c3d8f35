"""Evolution's two views of its instances, which disagree: the process's memory and the database.

``connectionState`` and the guards read memory, the full list reads the database. A create fills the
row first and memory second; a removal empties memory first and the row second, by *name*, without
checking that the name still belongs to the same instance.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from evosaga.orchestrator.local.evolution import phone
from evosaga.orchestrator.local.evolution.clock import timestamp
from evosaga.orchestrator.local.evolution.faults import Faults
from evosaga.orchestrator.local.evolution.guards import NO_DATABASE, Call, Refused
from evosaga.orchestrator.local.evolution.journal import Journal, Why
from evosaga.orchestrator.local.evolution.webhooks import Webhooks

BAILEYS = "WHATSAPP-BAILEYS"
BUSINESS = "WHATSAPP-BUSINESS"
EVOLUTION = "EVOLUTION"
LONGEST_NAME = 255

#: Seconds from a DELETE's answer to the end of the row, as observed on 2.3.6 and 2.3.7.
REMOVAL_LAG = (0.075, 0.220)


@dataclass(frozen=True, slots=True)
class Settings:
    """The server's settings. ``save_instances`` is CACHE_REDIS_SAVE_INSTANCES, true as shipped.

    ``delete_refusal`` is the probability that 2.3.7 answers the DELETE of a connecting or open
    Baileys instance with 400 ``["[object Object]"]``; None uses the observed shares.
    """

    api_key: str
    version: str = "2.3.7"
    pace: float = 1.0
    save_instances: bool = True
    delete_refusal: float | None = None
    qrcode_limit: int = 30
    global_webhook: str | None = None
    expose_token: bool = False
    webhook_attempts: int = 10
    client_name: str = "evolution_exchange"
    seed: int = 0


@dataclass(slots=True)
class Instance:
    """An instance in the memory of the process, with its socket to WhatsApp."""

    id: str
    name: str
    integration: str
    token: str
    number: str | None = None
    state: str = "close"
    session: bool = False  # WhatsApp knows this device: it reconnects without a QR
    owner_jid: str | None = None
    profile_name: str | None = None
    profile_picture: str | None = None
    code: str | None = None
    pairing_code: str | None = None
    qrs_shown: int = 0
    qr_withheld: float | None = None  # seconds until the first QR, where a fault withholds it
    socket: "asyncio.Task[None] | None" = None


@dataclass(slots=True)
class Row:
    """An instance in the database, with the rows that belong to it."""

    id: str
    name: str
    integration: str
    token: str
    number: str | None = None
    business_id: str | None = None
    client_name: str = "evolution_exchange"
    connection_status: str = "close"
    session: bool = False
    owner_jid: str | None = None
    profile_name: str | None = None
    profile_picture: str | None = None
    reason_code: int | None = None
    reason: str | None = None
    disconnected_at: str | None = None
    created_at: str = field(default_factory=timestamp)
    updated_at: str = field(default_factory=timestamp)
    setting: dict[str, Any] | None = None
    webhook: dict[str, Any] | None = None


class World:
    """The state of one Evolution process and its database, with all background work."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self.url = ""
        self.memory: dict[str, Instance] = {}
        self.rows: dict[str, Row] = {}
        self.tokens_ever: set[str] = set()
        self.random = Random(settings.seed)  # noqa: S311 (simulation, not security)
        self.reachable = True  # whether WhatsApp can be reached
        self._database_back_at = 0.0  # on the monotonic clock
        self.faults = Faults()
        self.webhooks = Webhooks(self)
        self._background: set[asyncio.Task[None]] = set()

    # -- time and background work

    async def wait(self, seconds: float) -> None:
        """Wait for a real duration, scaled by ``pace``."""
        await asyncio.sleep(seconds * self.settings.pace)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def forget(self) -> None:
        """The process dies: memory, removals under way and webhook retries are lost."""
        self._stop_background()
        self.memory.clear()

    async def stop(self) -> None:
        tasks = self._stop_background()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.webhooks.close()

    def _stop_background(self) -> list[asyncio.Task[None]]:
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        return tasks

    # -- the database

    def lose_database(self, seconds: float) -> None:
        """The database is down for this long (real seconds); 0: it is up again."""
        self._database_back_at = time.monotonic() + seconds

    @property
    def database_is_away(self) -> bool:
        """For all requests, until it is up again."""
        return time.monotonic() < self._database_back_at

    def database_is_down(self, call: Call) -> bool:
        """For this request; once down, it is down until the request's end."""
        call.database_lost = call.database_lost or self.database_is_away
        return call.database_lost or self.faults.bend("db_down", call) is not None

    def ask_database(self, call: Call) -> None:
        if self.database_is_down(call):
            raise Refused(500, NO_DATABASE)

    def insert(self, row: Row) -> bool:
        """Insert the Instance row. The real server ignores a failed insert, too."""
        if row.name in self.rows or len(row.name) > LONGEST_NAME:
            return False
        self.rows[row.name] = row
        self.tokens_ever.add(row.token)
        return True

    # -- removal

    def remove_later(
        self, name: str, why: Why, *, stall: float = 0.0, keep: str | None = None
    ) -> None:
        """Emit a removal by name; ``keep`` is the half ("row" or "memory") that remains."""
        self.spawn(self._remove(name, why, stall, keep))

    async def _remove(self, name: str, why: Why, stall: float, keep: str | None) -> None:
        await asyncio.sleep(stall)
        if name in self.memory:
            # Awaited: a target that fails delays the removal by its whole series of retries.
            await self.webhooks.tell(name, "remove.instance", None)
        lag, first = self.random.uniform(*REMOVAL_LAG), self.random.uniform(0.2, 0.8)
        await self.wait(lag * first)
        if self.database_is_away:
            return  # its first query fails, and so does everything after it
        instance = None if keep == "memory" else self.memory.pop(name, None)
        if instance is not None:
            phone.hang_up(self, instance)
        await self.wait(lag * (1 - first))
        row = None if keep == "row" else self.rows.pop(name, None)
        self.journal_removal(name, why, instance, row, keep)

    def journal_removal(
        self, name: str, why: Why, instance: Instance | None, row: Row | None, keep: str | None
    ) -> None:
        gone = row or instance
        if gone is not None:
            half = {"row": "removed_from_memory", "memory": "removed_from_database"}
            applied = half[keep] if keep else "removed"
            self.journal.landed(applied, why, name=name, instance_id=gone.id, token=gone.token)

    def wipe_undefined(self, why: Why) -> None:
        """The clean-up of a nameless create: without a filter it removes other instances."""
        self.memory.pop("undefined", None)
        victim = next(iter(self.rows.values()), None)
        if victim is not None:
            victim.webhook = victim.setting = None
            self.journal.landed("wiped", why, name=victim.name, instance_id=victim.id)
