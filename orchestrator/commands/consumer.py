"""Commands from the stream ``evosaga:commands``, read with FastStream and accepted in batches.

Nothing happens under a message but the accepting transaction, and only its commit leads to XACK.

FastStream stops a subscriber for good when the group vanishes, as after FLUSHALL, and nobody
would notice; ``watch`` does.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import dead_letters, streams, syncpoints
from evosaga.events.commands import BadCommand, Command, read_command
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.event_log import EventLog
from evosaga.events.redis_clients import prefix_of
from evosaga.events.redis_errors import cause
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.commands import ordering
from evosaga.orchestrator.commands.accept import Accepted, Request, TooSoon, accept, parse_request
from evosaga.orchestrator.commands.control import STEERING, ControlCommand, Restart, apply_control
from evosaga.orchestrator.commands.follow_ups import as_told, is_internal, resolve_all
from evosaga.orchestrator.commands.handover import Handover
from evosaga.orchestrator.commands.keyed_queue import KeyedQueue
from evosaga.orchestrator.commands.subscriber import Message, subscribed
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.transient_errors import is_transient
from evosaga.sagas.context import World
from evosaga.sagas.whatsapp.row_dry_run import ConstraintsUnknown

_logger = structlog.get_logger("evosaga.worker")
_RECLAIM_AFTER: Final = 5.0
"""Seconds after which a message that nobody acknowledged is given to another worker."""
_RIVALS: Final = 5
"""Times in a row that a command may lose against others who ask for the same."""
_UNREADY: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
)
"""What an operator has to mend in Postgres; until then commands wait on the stream."""
_STEERING_AT_ONCE: Final = 200
"""Sagas that are replayed or cancelled at the same time before the next ones have to wait."""
_PATIENCE: Final = 3
"""Deliveries after which a message that we stumble over is dead-lettered. Our bug, not lost."""
_LONG_PATIENCE: Final = 100
"""Deliveries of one that is about a history which this release can't read: some ten minutes."""


class CommandConsumer:
    """The reader and the reclaimer of one worker."""

    def __init__(
        self,
        redis_url: str,
        redis: Redis,
        pool: Pool,
        log: EventLog,
        engine: Engine,
        world: World,
        worker: str,
        patience: float = 30.0,
    ) -> None:
        """``patience``: seconds that a command waits which no living worker knows."""
        self._redis = redis
        self._pool = pool
        self._log = log
        self._engine = engine
        self._world = world
        self._worker = worker
        self._turns, self._left = KeyedQueue(_STEERING_AT_ONCE), KeyedQueue(1)
        self._handover = Handover(redis, pool, engine.registry, worker, patience)
        self._order = ordering.CommandOrder(redis, worker)
        self._broker, self._subscribers, self._reads = subscribed(
            redis_url, prefix_of(redis), worker, _RECLAIM_AFTER, self._handle
        )

    async def start(self) -> None:
        """Make the group, at 0, before anything reads; then read."""
        await streams.ensure_group(self._redis)
        await self._broker.start()

    async def stop(self) -> None:
        """Read no more; what is being accepted, or steered, is finished."""
        self._order.stop()
        await self._broker.stop()
        await self._left.rest()
        await self._turns.rest()

    @property
    def healthy(self) -> bool:
        """Whether both subscribers are running, and read."""
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why no commands are read; None when they are."""
        if not all(subscriber.running for subscriber in self._subscribers):
            return "a subscriber has stopped"
        failing = [reads.trouble for reads in self._reads if reads.trouble]
        return f"no command can be read: {failing[0]}" if failing else None

    async def watch(self, every: float = 1.0) -> None:
        """Bring back a group that vanished and subscribers that stopped; cancel it to stop."""
        while True:
            await asyncio.sleep(every)
            try:
                lost = await streams.ensure_group(self._redis)
                if lost:
                    _logger.warning("group was gone", stream=streams.COMMANDS)
                for subscriber in self._subscribers:
                    if not subscriber.running:
                        _logger.warning("subscriber had stopped; starting it again")
                        await subscriber.start()
                await self._take_what_was_left()
            except (RedisError, OSError, TimeoutError) as trouble:
                _logger.warning("redis is away", reason=cause(trouble))

    async def _take_what_was_left(self) -> None:
        """Obey what other workers did not know and this one does."""
        if not self._engine.free:
            return
        try:
            found = await self._handover.look()
        except Exception as trouble:  # it lies there, and the next look comes in a second
            _logger.warning("taking over waits", reason=type(trouble).__name__)
            return
        if found:
            await self._left.begin("left", partial(self._quietly, self._obey, found))

    async def _quietly(self, work: Callable[..., Awaitable[None]], *about: Any) -> None:
        """For work that nobody waits for: what it leaves unacknowledged comes again."""
        try:
            await work(*about)
        except Exception as trouble:
            _logger.warning("obeying waits", reason=type(trouble).__name__)

    async def _handle(self, messages: Sequence[Message]) -> None:
        await self._engine.room()
        await syncpoints.reach("cmd.read")
        await self._obey(messages)

    async def _obey(self, messages: Sequence[Message]) -> None:
        answers: list[tuple[Message, Accepted | BadCommand | None]] = []
        requests: list[tuple[Message, Request]] = []
        wishes: list[tuple[Message, Command]] = []
        ours: list[tuple[Message, Command]] = []
        known = self._engine.registry
        for message in messages:
            if self._order.waits(message):
                continue
            try:
                command = read_command(message.body())
                if command.type in STEERING:
                    wishes.append((message, command))
                elif is_internal(known, command):
                    ours.append((message, command))
                else:
                    requests.append((message, parse_request(known, command, doubtful=True)))
            except BadCommand as refusal:
                answers.append((message, refusal))
            except Exception as stumble:
                answers.append((message, await self._stumbled(message, stumble)))
        proved = await self._prove(ours) if ours else []
        requests += [(m, s) for m, s in proved if isinstance(s, Request)]
        answers += [(m, s) for m, s in proved if not isinstance(s, Request)]
        await self._settle([*answers, *await self._accept(requests)])
        await self._steer_all(wishes)  # last, since they may be about what came with them

    async def _settle(
        self, answers: Sequence[tuple[Message, Accepted | BadCommand | None]]
    ) -> None:
        """Bury what is bad, acknowledge what is committed, leave alone what must come again."""
        bad = [(message, said) for message, said in answers if isinstance(said, BadCommand)]
        if bad:
            try:
                left = await self._handover.leave(bad)
            except TRANSIENT as trouble:
                _logger.warning("burying waits", reason=type(trouble).__name__)
                left = {message.id for message, _ in bad}
            bad = [(message, said) for message, said in bad if message.id not in left]
        await self._bury(bad)
        done = [message for message, said in answers if isinstance(said, Accepted)]
        ids = [message.id for message in (*done, *(m for m, _ in bad))]
        await streams.acknowledge(self._redis, ids)
        await syncpoints.reach("ack.post")

    async def _prove(
        self, ours: Sequence[tuple[Message, Command]]
    ) -> list[tuple[Message, Accepted | Request | BadCommand | None]]:
        """Our own commands, as far as the log bears them out; None must come again."""
        commands = [command for _, command in ours]
        try:
            said = await resolve_all(self._pool, self._engine.registry, commands)
        except TRANSIENT as trouble:
            _logger.warning("proving waits", reason=type(trouble).__name__)
            return [(message, None) for message, _ in ours]
        except Exception as stumble:
            return [(m, await self._stumbled(m, stumble, command)) for m, command in ours]
        return [(message, one) for (message, _), one in zip(ours, said, strict=True)]

    async def _steer_all(self, wishes: Sequence[tuple[Message, Command]]) -> None:
        """Begin replays and cancels, of many sagas at once and of one saga in their order.

        They take their time, a replay to look around and a cancel to catch a saga that moves on,
        and nobody who comes behind them waits for that.
        """
        queues: dict[str, list[tuple[Message, Command]]] = {}
        for message, command in wishes:
            queues.setdefault(str(command.data.get("saga_id")), []).append((message, command))
        for saga, queue in queues.items():
            self._order.steers(message for message, _ in queue)
            await self._turns.begin(saga, partial(self._steer_one, queue))

    async def _steer_one(self, queue: Sequence[tuple[Message, Command]]) -> None:
        """What is wanted of one saga, one thing after the other."""
        for message, command in queue:
            try:
                answer = await self._steer(message, command)
                # A replay that starts anew is a request like any other.
                if isinstance(answer, Request):
                    told = await self._accept([(message, answer)])
                else:
                    told = [(message, answer)]
                await self._settle(told)  # at once, since others may wait for it
            except Exception as trouble:  # it is not acknowledged, so it comes again
                _logger.warning("steering waits", reason=type(trouble).__name__)
            finally:
                self._order.steered(message)

    async def _steer(
        self, message: Message, command: Command
    ) -> Accepted | Request | BadCommand | None:
        engine = self._engine
        try:
            command = await as_told(self._pool, command)
            answer = await apply_control(
                self._log,
                self._world,
                engine.registry,
                command,
                engine,
                self._order.comes(message, command),
            )
            if isinstance(answer, Restart):
                return parse_request(engine.registry, answer.command, doubtful=True)
            return Accepted("known" if answer == "known" else "steered", command.saga_id)
        except BadCommand as refusal:
            return refusal
        except (ordering.Interrupted, *TRANSIENT) as trouble:
            _logger.warning("steering waits", reason=type(trouble).__name__)
            return None
        except Exception as stumble:
            if is_transient(stumble):
                _logger.warning("steering waits", reason=type(stumble).__name__)
                return None
            return await self._stumbled(message, stumble, command)

    async def _accept(
        self, requests: Sequence[tuple[Message, Request]]
    ) -> list[tuple[Message, Accepted | BadCommand | None]]:
        """What became of each: accepted, bad, or None for what must come again."""
        if not requests:
            return []
        try:
            answers = await self._commit([request for _, request in requests])
        except TooSoon as doubt:
            return await self._in_turn(requests, doubt)
        except Exception as stumble:
            if is_transient(stumble):  # nothing is acknowledged, so all of it comes again
                _logger.warning("accepting waits", reason=type(stumble).__name__)
                return [(message, None) for message, _ in requests]
            if len(requests) > 1:  # find the one, and let its neighbours through
                return [one for request in requests for one in await self._accept([request])]
            [(message, request)] = requests
            return [(message, await self._stumbled(message, stumble, request.command))]
        results: list[tuple[Message, Accepted | BadCommand | None]] = []
        for (message, request), answer in zip(requests, answers, strict=True):
            if answer.kind == "new" and answer.state is not None:
                correlation = request.command.correlation_id or str(answer.saga_id)
                self._engine.start(answer.saga_id, answer.state, correlation)
            if answer.kind == "conflicting":
                sentence = f"the id {request.command.id} was used for another command"
                results.append((message, BadCommand("conflicting_duplicate", sentence)))
            else:
                results.append((message, answer))
        return results

    async def _in_turn(
        self, requests: Sequence[tuple[Message, Request]], doubt: TooSoon
    ) -> list[tuple[Message, Accepted | BadCommand | None]]:
        """Accept those whose turn it is for good; the others wait, and hold up nobody."""
        try:
            ready, queue = await self._order.split(requests, doubt)
        except (RedisError, OSError, TimeoutError) as trouble:
            _logger.warning("refusing waits", reason=type(trouble).__name__)
            return [(message, None) for message, _ in requests]
        if queue:
            name = f"behind {queue[0][1].id.decode()}"
            await self._turns.begin(name, partial(self._quietly, self._let_pass, queue))
        return [*await self._accept(ready), *((message, None) for (message, _), _ in queue)]

    async def _let_pass(
        self, queue: Sequence[tuple[ordering.Asked, ordering.StreamPosition]]
    ) -> None:
        async with contextlib.aclosing(self._order.turns(queue)) as turns:
            async for ready in turns:
                await self._settle(await self._accept(ready))

    async def _commit(self, requests: Sequence[Request]) -> list[Accepted]:
        """Accept, waiting while Postgres is away: no acknowledgement without a commit."""
        pause, doubtful, rivals = 0.05, False, 0
        while True:
            try:
                self._engine.pin()
                answers = await accept(self._pool, self._world, self._worker, requests)
                await syncpoints.reach("acc.post")
                if doubtful:
                    await self._take_up([a.saga_id for a in answers if a.kind == "known"])
                return answers
            except (*TRANSIENT, asyncpg.UniqueViolationError, *_UNREADY) as trouble:
                # Who loses against others who ask for the same is no poison, unless it never ends.
                rivals += isinstance(trouble, asyncpg.UniqueViolationError)
                if rivals > _RIVALS:
                    raise
                doubtful = True
                said = (
                    str(trouble)
                    if isinstance(trouble, ConstraintsUnknown)
                    else type(trouble).__name__
                )
                _logger.warning("accepting waits", reason=said)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    async def _take_up(self, saga_ids: Sequence[UUID]) -> None:
        """Drive what an earlier try committed before its connection broke: nobody else will."""
        mine = await self._pool.fetch(_MINE, saga_ids, self._worker)
        if mine:
            histories = await self._log.read_many([row["saga_id"] for row in mine])
            self._engine.take_over(histories, mine[0]["now"])

    async def _stumbled(
        self, message: Message, stumble: Exception, command: Command | None = None
    ) -> Accepted | BadCommand | None:
        """What becomes of a message that we stumbled over; None: it may come again."""
        _logger.error("accepting failed", message=message.id.decode(), error=type(stumble).__name__)
        # A newer worker may well understand what this one doesn't.
        patience = _LONG_PATIENCE if isinstance(stumble, ValidationError) else _PATIENCE
        if await self._tries(message) < patience:
            return None
        try:
            if command is not None and await self._committed(command):
                return Accepted("known", command.saga_id)
        except TRANSIENT:
            return None
        return BadCommand("not_accepted", f"accepting it raised {type(stumble).__name__}")

    async def _tries(self, message: Message) -> int:
        counts = await streams.deliveries(self._redis, [message.id])
        return counts.get(message.id, 1)

    async def _committed(self, command: Command) -> bool:
        """Whether it was obeyed all the same: before the stumble, or by whoever else had it."""
        if command.type in STEERING:
            about = ControlCommand.model_validate(
                command.data
            ).saga_id  # checked before anything else
            return bool(await self._pool.fetchval(_STEERED, about, command.id, command.saga_id))
        known = await self._pool.fetchval(_KNOWN, command.saga_id)
        return bool(known == command.hash)

    async def _bury(self, bad: Sequence[tuple[Message, BadCommand]]) -> None:
        if not bad:
            return
        counts = await streams.deliveries(self._redis, [message.id for message, _ in bad])
        await dead_letters.publish(
            self._redis,
            [
                message.letter(refusal.code, refusal.message, counts.get(message.id, 1))
                for message, refusal in bad
            ],
        )
        for message, refusal in bad:
            _logger.warning("dead letter", message=message.id.decode(), code=refusal.code)


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
