"""A worker in virtual time: the product's own engine and lease, on a log that can be held.

Every call that leaves it is an ``Op``: it waits until the cluster settles it. What carries it out
(``do``) is one indivisible change of the world, as a request or a commit is.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from uuid import UUID

from evosaga.events.append import Append, Appended
from evosaga.events.event_log import EventLog, Hold
from evosaga.events.model import Recorded
from evosaga.events.turns import Turn
from evosaga.orchestrator.commands.testing.loop import ACTOR, Actor, Loop
from evosaga.orchestrator.commands.testing.memory import at_once
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.state import State

if TYPE_CHECKING:
    from evosaga.orchestrator.commands.testing.cluster import Cluster

TTL: Final = 2.5


@dataclass(eq=False)
class Op:
    """A call that is out. ``about`` is what it concerns."""

    kind: str
    actor: "Worker"
    do: Callable[[], Any]
    future: "asyncio.Future[Any]"
    about: str
    token: str = ""
    late: bool = False
    """Whether its caller may be gone, or superseded, by the time it happens."""


class SparseLease(Lease):
    """The real lease without the beats between: it is as if one had just come, unless it slept."""

    def __init__(self, worker: str, loop: Loop) -> None:
        self._frozen: float | None = None
        self._loop = loop
        super().__init__(cast(Any, _Heard()), worker, ttl=TTL)
        self.beat_now()

    @property
    def _valid_until(self) -> float:
        return self._loop.now + TTL * 0.9 if self._frozen is None else self._frozen

    @_valid_until.setter
    def _valid_until(self, value: float) -> None:
        self._frozen = None if value > self._loop.now else value

    def fall_asleep(self) -> None:
        self._frozen = self._valid_until

    def is_over(self) -> bool:
        return self._loop.now >= self._valid_until

    def beat_now(self) -> None:
        """One beat of the real lease, which counts a new epoch if it was over."""
        at_once(self.beat())


class _Heard:
    """A pool that takes a heartbeat."""

    async def execute(self, *_: Any, **__: Any) -> None:
        return None


class Worker(Actor):
    """One process with everything that it alone has."""

    def __init__(self, name: str, cluster: "Cluster") -> None:
        super().__init__(name)
        self.cluster = cluster
        self.gone_at = 0.0
        """When it last gave a sign of life, if it is dead or asleep."""
        self.lease = SparseLease(name, cluster.loop)
        if not cluster.fenced:
            self.lease.check = lambda: None  # type: ignore[method-assign]
        self.services: Any = cluster.services_of(self)
        log = cast(EventLog, Log(self))
        self.engine = Engine(cluster.registry, log, self.services, self.lease, capacity=100)
        self.context: Context = copy_context()
        self.context.run(ACTOR.set, self)

    def runs(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something as this process."""
        return self.context.run(function, *args)

    async def op(
        self, kind: str, do: Callable[[], Any], about: object = "", token: str = ""
    ) -> Any:
        """Wait until the cluster lets it happen, and for what it answers."""
        future = self.cluster.loop.create_future()
        self.cluster.pending.append(Op(kind, self, do, future, str(about), token))
        return await future


class Log:
    """``EventLog`` as the engine uses it."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._db = worker, worker.cluster.database

    async def append(self, append: Append[State]) -> Appended[State]:
        kind = "append" if append.join is None else "join"
        done: Appended[State] = await self._worker.op(
            kind, lambda: self._db.commit(append), append.saga_id
        )
        return done

    async def hold(self, hold: Hold) -> Literal["held", "moved", "lost"]:
        said: Literal["held", "moved", "lost"] = await self._worker.op(
            "hold", lambda: self._db.hold(hold), hold.saga_id
        )
        return said

    async def take_turn(self, saga_id: UUID, owner: str) -> Turn:
        turn: Turn = await self._worker.op(
            "turn", lambda: self._db.take_turn(saga_id, owner), saga_id
        )
        return turn

    async def wait_for_turn(self, saga_id: UUID, *said: Any) -> None:
        await self._worker.op("turn", lambda: self._db.wait_for_turn(saga_id, *said), saga_id)

    async def read(self, saga_id: UUID) -> list[Recorded]:
        read: list[Recorded] = await self._worker.op(
            "read", lambda: [*self._db.events.get(saga_id, [])], saga_id
        )
        return read

    async def now(self) -> datetime:
        return self._db.now()

    async def set_aside(self, saga_id: UUID, sequence: int, *_: object) -> None:
        """That a worker stumbled is a broken law here, so nothing needs to come of it."""


class DirectLog(Log):
    """The same for those who steer: they are not what is explored, so nothing holds them up."""

    async def append(self, append: Append[State]) -> Appended[State]:
        return self._db.commit(append)

    async def read(self, saga_id: UUID) -> list[Recorded]:
        return [*self._db.events.get(saga_id, [])]

    async def read_many(self, saga_ids: Sequence[UUID]) -> dict[UUID, list[Recorded]]:
        return {saga_id: [*self._db.events[saga_id]] for saga_id in saga_ids}
