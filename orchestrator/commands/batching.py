"""Commands that come one by one, accepted together.

Accepting costs a dozen round trips and a commit, whether for one command or a hundred. So whoever
comes while a transaction is on its way waits for the next one, with all the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from evosaga.events.database import TRANSIENT
from evosaga.orchestrator.commands.accept import Accepted
from evosaga.orchestrator.commands.claims import Request

_BATCH: Final = 100
Take: TypeAlias = Callable[[Sequence[Request]], Awaitable[Sequence[Accepted]]]
_Waiting: TypeAlias = tuple[Request, "asyncio.Future[Accepted]"]


class Batcher:
    """The queue in front of one gate. Needs no start and no stop: it runs while somebody waits."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None

    async def through(self, request: Request, take: Take) -> Accepted:
        """What ``take`` makes of the request, in a batch with others. Raises what it raises.

        A caller that is cancelled has not taken his request back.
        """
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(take), name="intake")
        return await future

    async def _run(self, take: Take) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            await _settle(batch, take)


async def _settle(batch: Sequence[_Waiting], take: Take) -> None:
    try:
        answers = await take([request for request, _ in batch])
    except Exception as error:
        if len(batch) > 1 and not isinstance(error, TRANSIENT):
            for one in batch:  # find the one, and let its neighbours through
                await _settle([one], take)
            return
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
    else:
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
