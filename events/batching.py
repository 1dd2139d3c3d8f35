"""Micro-batching: single items that arrive during one round trip share the next.

A round trip to Postgres or Redis, and a commit, cost about the same for one item as for a hundred.
An item that finds nothing under way goes at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")

Send: TypeAlias = Callable[[Sequence[ItemT]], Awaitable[Sequence[AnswerT | BaseException]]]
"""Sends a batch; the answers are in its order. An exception among them, or one that it raises, is
raised at the caller of that item, or at all of them."""


class Batcher(Generic[ItemT, AnswerT]):
    """A queue in front of a ``Send``. It needs no start and no stop: it runs while it has items."""

    def __init__(self, name: str, most: int) -> None:
        """``most``: items in a batch."""
        self._name = name
        self._most = most
        self._waiting: list[tuple[ItemT, asyncio.Future[AnswerT]]] = []
        self._running: asyncio.Task[None] | None = None

    async def send(self, item: ItemT, send: Send[ItemT, AnswerT]) -> AnswerT:
        """The answer to ``item``, sent in a batch with others. Raises what ``send`` raises.

        A caller that is cancelled has not taken its item back.
        """
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(send), name=self._name)
        return await future

    async def _run(self, send: Send[ItemT, AnswerT]) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            answers: Sequence[AnswerT | BaseException]
            try:
                answers = await send([item for item, _ in batch])
            except BaseException as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # its caller was cancelled meanwhile
                    continue
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
