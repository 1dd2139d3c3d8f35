"""Command handler: the one place where a command starts a saga or is applied to one as control.

The stream's consumer, HTTP, the command line and scheduled jobs all come through here and get a
``Result``. Acceptance needs Postgres alone, so commands are taken while Redis is away. What is
answered with ``Started``, ``Rejected`` or ``Applied`` is committed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg
import structlog

from evosaga.events import syncpoints
from evosaga.events.batching import Batcher
from evosaga.events.commands import BadCommand, Command
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.event_log import EventLog
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.commands.accept import accept, parse_request
from evosaga.orchestrator.commands.claims import Request
from evosaga.orchestrator.commands.control import STEERING, ControlCommand, Restart, apply_control
from evosaga.orchestrator.commands.follow_ups import as_told, resolve_all
from evosaga.orchestrator.commands.results import (
    Accepted,
    Applied,
    Conflict,
    Duplicate,
    Refused,
    Started,
)
from evosaga.orchestrator.engine.engine import Engine
from evosaga.sagas.definition import AdmissionHeld
from evosaga.sagas.registry import SagaRegistry

_logger = structlog.get_logger("evosaga.worker")
_BATCH: Final = 100
"""Single commands that share one transaction."""
_RIVALS: Final = 5
"""Times in a row that a command may lose against others who ask for the same."""
_UNREADY: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
)
"""What an operator has to mend in Postgres; until then commands wait on the stream."""


@dataclass(frozen=True, slots=True)
class CommandHandler:
    """``engine``: the one of this process, if it has a worker; else any worker takes over."""

    pool: Pool
    log: EventLog
    services: object
    registry: SagaRegistry
    engine: Engine | None = None
    batcher: Batcher[Request, Accepted | Conflict] = field(
        default_factory=lambda: Batcher("intake", _BATCH), repr=False, compare=False
    )

    async def submit(self, command: Command) -> Accepted:
        """Obey a command from inside or over HTTP: ``handle``, with refusals as ``BadCommand``."""
        result = await self.handle(command)
        if isinstance(result, Refused | Conflict):
            raise result.refusal
        return result

    async def handle(self, command: Command) -> Accepted | Conflict | Refused:
        """Obey one command, in a transaction shared with others that come meanwhile.

        Raises what the database raises while it is away: nothing is promised then, and the caller
        may repeat. An internal command is believed here; one from outside is resolved first.
        """
        asked: Request | Applied | Duplicate | Refused
        if command.type in STEERING:
            asked = await self.control(command)
        else:
            asked = _parsed(self.registry, command)
        return await self.batcher.send(asked, self._take) if isinstance(asked, Request) else asked

    async def resolve(self, commands: Sequence[Command]) -> list[Request | Refused]:
        """What commands from outside ask for; internal ones only as far as the log proves them."""
        resolved = await resolve_all(self.pool, self.registry, commands)
        return [Refused(one) if isinstance(one, BadCommand) else one for one in resolved]

    async def control(
        self,
        command: Command,
        too_soon: Callable[[], Awaitable[bool]] | None = None,
        *,
        from_stream: bool = False,
    ) -> Applied | Duplicate | Refused | Request:
        """Apply a replay or cancel; a ``Request`` when the replay starts the saga anew.

        ``from_stream``: what was published before it may still be on its way, and its id may be
        that of an event which has brought it. ``too_soon`` is asked before a refusal.
        """
        try:
            if from_stream:
                command = await as_told(self.pool, command)
            answer = await apply_control(
                self.log, self.services, self.registry, command, self.engine, too_soon
            )
            if isinstance(answer, Restart):
                return parse_request(self.registry, answer.command, doubtful=from_stream)
        except BadCommand as refusal:
            return Refused(refusal)
        return answer

    async def _take(
        self, requests: Sequence[Request]
    ) -> Sequence[Accepted | Conflict | BaseException]:
        """Accept a batch of single commands, and drive here what has started if there is room."""
        here = self.engine is not None and self.engine.free >= len(requests)
        await syncpoints.reach("api.pre")
        try:
            return await self._accept(requests, "api.post", drive=here)
        except Exception as error:
            if len(requests) == 1 or isinstance(error, TRANSIENT):
                return [error] * len(requests)
            # Find the one, and let its neighbours through.
            return [one for request in requests for one in await self._take([request])]

    async def start_all(
        self, requests: Sequence[Request], *, drive: bool = True
    ) -> list[Accepted | Conflict]:
        """Accept a batch of the stream for this worker, waiting while Postgres is away.

        Without ``drive`` the sagas are accepted and wait for whichever worker has room for them.
        Raises ``TooSoon``, and what is no outage.
        """
        pause, doubtful, rivals = 0.05, False, 0
        while True:
            try:
                answers = await self._accept(requests, "acc.post", drive=drive, doubtful=doubtful)
            except (*TRANSIENT, asyncpg.UniqueViolationError, *_UNREADY) as trouble:
                # Losing against others about the same key is no poison, unless it never ends.
                rivals += isinstance(trouble, asyncpg.UniqueViolationError)
                if rivals > _RIVALS:
                    raise
                doubtful = True
                sentence = isinstance(trouble, AdmissionHeld)
                reason = str(trouble) if sentence else type(trouble).__name__
                _logger.warning("accepting_retrying", reason=reason)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)
            else:
                return answers

    async def _accept(
        self, requests: Sequence[Request], point: str, *, drive: bool, doubtful: bool = False
    ) -> list[Accepted | Conflict]:
        """Accept a batch, and ``drive`` what has started. ``doubtful``: an earlier try may have
        committed before its connection broke.
        """
        engine = self.engine if drive else None
        if engine is not None:
            engine.bind_lease()
        worker = engine.worker if engine is not None else None
        answers = await accept(self.pool, self.services, worker, requests)
        await syncpoints.reach(point)
        if engine is None:
            return answers
        if doubtful:
            known = [a.saga_id for a in answers if isinstance(a, Duplicate)]
            await self._take_up(engine, known)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Started):
                correlation = request.command.correlation_id or str(answer.saga_id)
                engine.start(answer.saga_id, answer.state, correlation)
        return answers

    async def _take_up(self, engine: Engine, saga_ids: Sequence[UUID]) -> None:
        """Drive what an earlier try committed before its connection broke: no other worker will."""
        mine = await self.pool.fetch(_MINE, saga_ids, engine.worker)
        if mine:
            histories = await self.log.read_many([row["saga_id"] for row in mine])
            engine.take_over(histories, mine[0]["now"])

    async def was_obeyed(self, command: Command) -> bool:
        """Whether it was obeyed all the same: before it failed here, or by another worker."""
        if command.type in STEERING:
            command = await as_told(self.pool, command)
            about = ControlCommand.model_validate(command.data).saga_id  # checked before
            return bool(await self.pool.fetchval(_STEERED, about, command.id, command.saga_id))
        return bool(await self.pool.fetchval(_KNOWN, command.saga_id) == command.hash)


def _parsed(registry: SagaRegistry, command: Command) -> Request | Refused:
    try:
        return parse_request(registry, command)
    except BadCommand as refusal:
        return Refused(refusal)


_KNOWN: Final = """
SELECT command_hash FROM evosaga.sagas WHERE saga_id = $1
UNION ALL SELECT command_hash FROM evosaga.refused WHERE saga_id = $1
"""
_STEERED: Final = """
SELECT EXISTS (SELECT FROM evosaga.saga_events WHERE saga_id = $1 AND causation_id = $2)
    OR EXISTS (SELECT FROM evosaga.sagas WHERE saga_id = $3 AND command_id = $2)
"""
_MINE: Final = f"""
SELECT saga_id, now() AS now FROM evosaga.sagas
WHERE saga_id = ANY($1) AND owner = $2 AND {ACTIVE_STATUSES}
"""  # noqa: S608  # constants only
