"""Commands of the stream on their way to the handler: in batches, and in their order.

Each message ends in a ``Result``, which is handed to ``settle``. A command that would be refused
only because one published before it is still on its way waits for its turn
(``evosaga.orchestrator.commands.ordering``); replays and cancels run beside the batch, in order
within a saga.
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events.commands import STEERING, BadCommand, Command, read_command
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT
from evosaga.orchestrator.commands import ordering
from evosaga.orchestrator.commands.accept import parse_request
from evosaga.orchestrator.commands.claims import Request, TooSoon
from evosaga.orchestrator.commands.follow_ups import is_internal
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.commands.keyed_queue import KeyedQueue
from evosaga.orchestrator.commands.results import Failed, Refused, Result, RetryLater
from evosaga.orchestrator.commands.subscriber import Message
from evosaga.orchestrator.engine.resources import ResourceUnavailable
from evosaga.orchestrator.engine.transient_errors import is_transient

_logger = structlog.get_logger("evosaga.worker")
_CONTROL_AT_ONCE: Final = 200
"""Sagas that are replayed or cancelled at the same time before the next ones have to wait."""

Told: TypeAlias = tuple[Message, Result]
Settle: TypeAlias = Callable[[Sequence[Told]], Awaitable[None]]
"""Acknowledges what is settled, and leaves the rest to come again."""


class StreamIntake:
    """The commands that one worker has in hand. ``close`` waits for those that take their time."""

    def __init__(self, redis: Redis, handler: CommandHandler, worker: str, settle: Settle) -> None:
        self._handler = handler
        self._settle = settle
        self._turns = KeyedQueue(_CONTROL_AT_ONCE)
        self._order = ordering.CommandOrder(redis, worker)

    def stop(self) -> None:
        """Wait for no more turns; what has not had its own comes again."""
        self._order.stop()

    async def close(self) -> None:
        """Finish what was begun."""
        await self._turns.rest()

    async def obey(self, messages: Sequence[Message], *, drive: bool = True) -> None:
        """Obey a batch; control commands are begun here and settled later.

        Without ``drive`` what starts waits for whichever worker has room for it.
        """
        told: list[Told] = []
        requests: list[tuple[Message, Request]] = []
        control: list[tuple[Message, Command]] = []
        internal: list[tuple[Message, Command]] = []
        registry = self._handler.registry
        for message in messages:
            if self._order.waits(message):
                continue
            try:
                command = read_command(message.body())
                if command.type in STEERING:
                    control.append((message, command))
                elif is_internal(registry, command):
                    internal.append((message, command))
                else:
                    requests.append((message, parse_request(registry, command, doubtful=True)))
            except BadCommand as refusal:
                told.append((message, Refused(refusal)))
            except Exception as error:
                told.append((message, Failed(error)))
        for message, resolved in await self._resolve(internal):
            if isinstance(resolved, Request):
                requests.append((message, resolved))
            else:
                told.append((message, resolved))
        await self._settle([*told, *await self._start(requests, drive)])
        await self._begin_control(control)  # last, since they may be about what came with them

    async def _resolve(
        self, internal: Sequence[tuple[Message, Command]]
    ) -> list[tuple[Message, Request | Refused | RetryLater | Failed]]:
        if not internal:
            return []
        try:
            resolved = await self._handler.resolve([command for _, command in internal])
        except Exception as error:
            return [(m, _raised(error, command, "resolving_retrying")) for m, command in internal]
        return [(message, one) for (message, _), one in zip(internal, resolved, strict=True)]

    # --- starting sagas ------------------------------------------------------------------------

    async def _start(
        self, requests: Sequence[tuple[Message, Request]], drive: bool = True
    ) -> list[Told]:
        if not requests:
            return []
        try:
            answers = await self._handler.start_all([r for _, r in requests], drive=drive)
        except TooSoon as doubt:
            return await self._start_in_turn(requests, doubt)
        except Exception as error:
            if len(requests) == 1 or is_transient(error):
                return [(m, _raised(error, r.command, "accepting_retrying")) for m, r in requests]
            # Find the one, and let its neighbours through.
            return [one for request in requests for one in await self._start([request], drive)]
        return [(message, one) for (message, _), one in zip(requests, answers, strict=True)]

    async def _start_in_turn(
        self, requests: Sequence[tuple[Message, Request]], doubt: TooSoon
    ) -> list[Told]:
        """Accept those whose turn it is for good; the others wait, and hold up nothing else."""
        try:
            ready, queue = await self._order.split(requests, doubt)
        except (RedisError, OSError, TimeoutError) as trouble:
            _logger.warning("refusing_retrying", reason=reason(trouble))
            return [(message, RetryLater()) for message, _ in requests]
        if queue:
            name = f"behind {queue[0][1].id.decode()}"
            await self._turns.begin(name, partial(quietly, self._let_pass, queue))
        return [*await self._start(ready), *((message, RetryLater()) for (message, _), _ in queue)]

    async def _let_pass(
        self, queue: Sequence[tuple[ordering.Asked, ordering.StreamPosition]]
    ) -> None:
        async with contextlib.aclosing(self._order.turns(queue)) as turns:
            async for ready in turns:
                await self._settle(await self._start(ready))

    # --- control -------------------------------------------------------------------------------

    async def _begin_control(self, commands: Sequence[tuple[Message, Command]]) -> None:
        """Begin replays and cancels, of many sagas at once and of one saga in their order.

        They take their time, a replay to look around and a cancel to catch a saga that moves on,
        and no command behind them waits for that.
        """
        queues: dict[str, list[tuple[Message, Command]]] = {}
        for message, command in commands:
            queues.setdefault(str(command.data.get("saga_id")), []).append((message, command))
        for saga, queue in queues.items():
            self._order.steers(message for message, _ in queue)
            await self._turns.begin(saga, partial(self._control_all, queue))

    async def _control_all(self, queue: Sequence[tuple[Message, Command]]) -> None:
        """What is wanted of one saga, one thing after the other; each is settled at once."""
        for message, command in queue:
            try:
                result = await self._control(message, command)
                # A replay that starts anew is a request like any other.
                if isinstance(result, Request):
                    await self._settle(await self._start([(message, result)]))
                else:
                    await self._settle([(message, result)])
            except Exception as trouble:  # it is not acknowledged, so it comes again
                _logger.warning("control_retrying", reason=reason(trouble))
            finally:
                self._order.steered(message)

    async def _control(self, message: Message, command: Command) -> Result | Request:
        try:
            comes = self._order.comes(message, command)
            return await self._handler.control(command, comes, from_stream=True)
        except ordering.Interrupted as trouble:
            _logger.warning("control_retrying", reason=reason(trouble))
            return RetryLater()
        except Exception as error:
            return _raised(error, command, "control_retrying")


def _raised(error: Exception, command: Command, event: str) -> RetryLater | Failed:
    """What an exception amounts to: an outage passes, everything else is our own fault."""
    passing = (*TRANSIENT, ResourceUnavailable)
    if not isinstance(error, passing) and not is_transient(error):
        return Failed(error, command)
    _logger.warning(event, reason=type(error).__name__)
    return RetryLater()


async def quietly(work: Callable[..., Awaitable[None]], *about: Any) -> None:
    """For work that no caller waits for: what it leaves unacknowledged comes again."""
    try:
        await work(*about)
    except Exception as trouble:
        _logger.warning("obeying_retrying", reason=reason(trouble))
