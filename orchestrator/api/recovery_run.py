"""Recovery of a log that went back, which a person asked for: look, and heal.

The command line draws it; the HTTP API answers with the same.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from evosaga.events import log_loss
from evosaga.events.commands import BadCommand
from evosaga.events.database import Pool
from evosaga.events.log_loss import Comparison
from evosaga.orchestrator.commands import forgotten, forgotten_commands
from evosaga.orchestrator.commands.forgotten import Forgotten, ForgottenSaga, Leftover
from evosaga.orchestrator.commands.forgotten_commands import ForgottenCommand
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domains, nothing_left
from evosaga.orchestrator.engine.resources import ResourceUnavailable
from evosaga.orchestrator.queries.sagas import sagas_of, under_way

_POLL: Final = 0.1


class CantLook(Exception):
    """What a domain uses can't be opened, so what is left there is not known."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Place:
    """What is recovered, and with what. ``services_of``: by a saga's name; may raise
    ``ResourceUnavailable``.
    """

    settings: Settings
    pool: Pool
    redis: Redis
    domains: Domains
    services_of: Callable[[str], Any]
    gate: CommandHandler

    async def look(self) -> tuple[Forgotten, list[Leftover]]:
        """What was forgotten, and what of it is left outside. Raises ``CantLook``."""
        found = await forgotten.look(self.pool, self.redis, self.domains.sagas)
        left: list[Leftover] = []
        for one in self.domains.each:
            if one.leftovers is nothing_left:
                continue
            try:
                services = self.services_of(next(name for name, _ in one.sagas.versions))
            except ResourceUnavailable as reason:
                said = f"what {one.name} uses can't be opened: {reason}"
                raise CantLook(said) from reason
            asked = one.leftovers(self.settings, self.pool, services, self.gate, found.sagas)
            left += await asked
        return found, left


async def compared(pool: Pool, redis: Redis) -> Comparison:
    """What is known of a loss; changes nothing, not even that it is known."""
    if (loss := await log_loss.recorded(pool)) is not None:
        return Comparison(await log_loss.epoch(pool), loss)
    return await log_loss.compare(pool, redis)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was forgotten, and what is left outside."""

    known: Comparison
    found: Forgotten
    left: Sequence[Leftover]

    @property
    def wrong(self) -> bool:
        """Whether there is anything to heal."""
        return self.known.loss is not None or bool(self.found.commands) or bool(self.left)

    def document(self) -> dict[str, Any]:
        """As ``--json`` has it. The data of commands is left out: it may be personal."""
        loss, commands = self.known.loss, {one.saga_id for one in self.found.commands}
        return {
            "went_back": loss
            and {
                "noticed_at": loss.noticed_at and loss.noticed_at.isoformat(),
                "told_up_to": loss.told_up_to,
                "newest": loss.newest,
                "event": loss.event,
                "said": str(loss),
            },
            "epoch": self.known.epoch,
            "commands": [_command(one) for one in self.found.commands],
            "sagas": [_saga(one, one.saga_id in commands) for one in self.found.sagas],
            "instances": [_instance(one) for one in self.left],
        }


@dataclass(frozen=True, slots=True)
class Healed:
    """``begun``: the epoch that has begun; None: no worker took the commands, and the stop stays.

    ``left``: what a person has to decide. ``lost``: ids of sagas that must be asked for again.
    """

    begun: int | None
    repairs: Sequence[dict[str, Any]]
    left: Sequence[Leftover]
    lost: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """For programs, in addition to the plan."""
        done = {"begun": self.begun, "repairs": list(self.repairs), "lost_sagas": list(self.lost)}
        return done | {"left": [_instance(one) for one in self.left]}


async def plan(place: Place, known: Comparison) -> Plan:
    """Look, and change nothing."""
    return Plan(known, *await place.look())


@dataclass(slots=True)
class Recovery:
    """One recovery. ``company`` is called while workers are waited for, ``timeout`` seconds."""

    place: Place
    timeout: float
    company: Callable[[], Awaitable[None]] = _nothing
    repairs: list[dict[str, Any]] = field(default_factory=list)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout

    async def heal(self, seen: Plan) -> Healed:
        """Take commands again, mend what is left outside, and begin a new epoch."""
        if not await self._take_again(seen.found):
            return Healed(None, self.repairs, seen.left)
        # A saga that was taken again has found its own instance by now, so look anew.
        after, now_left = await self.place.look()
        before = {(one.what, one.where) for one in seen.left}
        await self._mend([one for one in now_left if (one.what, one.where) in before])
        epoch = seen.known.epoch
        if seen.known.loss is not None:
            epoch = await log_loss.begin_epoch(self.place.pool, self.place.redis)
        _, still = await self.place.look()
        kept = {one["where"] for one in self.repairs if one["status"] == "completed"}
        kept -= {one["where"] for one in self.repairs if one["does"] != "adopt"}
        lost = [one for one in after.sagas if one.lost and one.instance_name not in kept]
        return Healed(epoch, self.repairs, still, [str(one.saga_id) for one in lost])

    async def _take_again(self, found: Forgotten) -> bool:
        """Whether workers have taken the commands; then their sagas are waited for as well."""
        if not found.commands:
            return True
        await self.company()
        ids = await forgotten_commands.take_again(self.place.redis, found.commands)
        if not await forgotten_commands.taken(self.place.redis, ids, self.deadline):
            return False
        await self.company()
        await self._over([one.saga_id for one in found.commands if one.saga_id is not None])
        return True

    async def _mend(self, left: Sequence[Leftover]) -> None:
        """Ask for the repairs, wait for them, and keep what became of them."""
        asked: dict[UUID, Leftover] = {}
        for one in left:
            if one.command is None:
                continue
            try:
                asked[(await self.place.gate.submit(one.command)).saga_id] = one
            except BadCommand as refusal:
                self._repaired(one, None, "refused", refusal.message)
        await self._over(list(asked))
        for saga in await sagas_of(self.place.pool, list(asked), limit=len(asked)):
            self._repaired(asked[saga.saga_id], saga.saga_id, saga.status, saga.message)

    def _repaired(
        self, one: Leftover, saga_id: UUID | None, status: str, message: str | None
    ) -> None:
        told = {"what": one.what, "where": one.where, "does": one.does, "status": status}
        self.repairs.append(told | {"saga_id": saga_id and str(saga_id), "message": message})

    async def _over(self, saga_ids: Sequence[UUID]) -> None:
        """Wait until these sagas are over, or parked, or time is up; they go on after that."""
        while time.monotonic() < self.deadline:
            if not await under_way(self.place.pool, saga_ids):
                return
            await asyncio.sleep(_POLL)


def _command(one: ForgottenCommand) -> dict[str, Any]:
    return {
        "message_id": one.message.id.decode(),
        "id": one.command.id,
        "type": one.command.type,
        "saga_id": str(one.saga_id or one.command.data.get("saga_id")),
    }


def _saga(one: ForgottenSaga, again: bool) -> dict[str, Any]:
    return {
        "saga_id": str(one.saga_id),
        "saga": one.saga,
        "known": one.known,
        "events": one.events,
        "last": one.last,
        "at": one.at.isoformat(),
        "organization_id": one.organization_id and str(one.organization_id),
        "instance_name": one.instance_name,
        "command": one.command,
        "command_id": one.command_id,
        "what": _fate(one, again),
    }


def _fate(one: ForgottenSaga, again: bool) -> str:
    if one.known:
        return "goes_on"
    if again:
        return "taken_again"
    return "lost" if one.lost else "over"


def _instance(one: Leftover) -> dict[str, Any]:
    return {
        "what": one.what,
        "where": one.where,
        "organization_id": one.organization_id and str(one.organization_id),
        "cause": one.cause,
        "repair": one.repair,
        "does": one.does,
    }
