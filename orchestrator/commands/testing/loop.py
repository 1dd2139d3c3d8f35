"""An event loop in which nothing happens by chance.

Time is a number that somebody moves. Callbacks run in the order in which they became ready. When
none is ready the loop asks ``idle`` what happens next: that is where an explorer makes its choice.
Everything that a worker does carries the worker in its context (``ACTOR``), so that a worker can
be killed (nothing of it ever runs again, no ``finally``, no ``except``) or put to sleep (what
would run waits until it wakes up), while the rest of the world goes on.
"""

import asyncio
import contextlib
import gc
import heapq
import resource
import time
from asyncio import events as _events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = str(Path(__file__).parent)
_WHO: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
"""The thread; where the system counts by process only, that."""


class Actor:
    """Whoever callbacks belong to: a worker's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.asleep = False
        self.stash: list[asyncio.Handle] = []
        """What would have run while it slept."""

    @property
    def awake(self) -> bool:
        return not self.dead and not self.asleep


ACTOR: Final[ContextVar[Actor | None]] = ContextVar("actor", default=None)


class _Watch:
    """How long a callback held the loop, in seconds of real time.

    On a busy machine a thread that could run waits for a processor, which is nobody's fault. So
    where it never waited by itself, as ``time.sleep`` and blocking calls do, its processor time
    counts alone.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._computed = time.thread_time()
        self._waits = resource.getrusage(_WHO).ru_nvcsw

    def held(self) -> float:
        if resource.getrusage(_WHO).ru_nvcsw > self._waits:
            return time.perf_counter() - self._began
        return time.thread_time() - self._computed


class Loop(asyncio.AbstractEventLoop):
    """Runs callbacks in virtual time, in seconds; ``idle`` returns False when all is over."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.idle: Callable[[], bool] = lambda: False
        self.slow: float | None = None
        """Seconds of real time after which a callback counts as one that blocks; None: never."""
        self.troubles: list[str] = []
        """What asyncio had to complain of: exceptions that nobody took."""
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []

    # --- what asyncio asks of a loop ------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, **kwargs)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "was destroyed" not in context["message"]:  # that is what a kill looks like
            self.troubles.append(f"{context['message']}: {context.get('exception')!r}")

    # --- running ---------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When the next timer is due that anybody still waits for."""
        while self._timers and self._is_idle(self._timers[0][2]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, to: float) -> None:
        """Move time, and make ready what is due by then."""
        self.now = max(self.now, to)
        while self._timers and self._timers[0][0] <= self.now:
            self._ready.append(heapq.heappop(self._timers)[2])

    def wake(self, actor: Actor) -> None:
        """It goes on where it stopped, not knowing how long it slept."""
        actor.asleep = False
        self._ready.extend(actor.stash)
        actor.stash.clear()

    def run(self) -> None:
        """Until ``idle`` says that all is over."""
        while True:
            while self._ready:
                self._step(self._ready.popleft())
            if not self.idle():
                return

    def _step(self, handle: asyncio.Handle) -> None:
        if self._is_idle(handle):
            return
        actor = handle._context.get(ACTOR)  # type: ignore[attr-defined]
        if actor is not None and actor.asleep:
            actor.stash.append(handle)
        else:
            watch = _Watch() if self.slow is not None else None
            handle._run()
            if watch is not None and self.slow is not None and watch.held() > self.slow:
                self.troubles.append(f"it blocks the event loop{_place(handle)}: await instead")

    def _is_idle(self, handle: asyncio.Handle) -> bool:
        actor = handle._context.get(ACTOR)  # type: ignore[attr-defined]
        return handle.cancelled() or (actor is not None and actor.dead)

    def bury(self) -> None:
        """Close what the dead left behind, so that it doesn't come up in somebody else's run."""
        for task in self._tasks:
            if not task.done():
                coroutine = task.get_coro()
                with contextlib.suppress(BaseException):
                    coroutine.close()
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()


def _place(handle: asyncio.Handle) -> str:
    """Where the coroutine of a callback has got to."""
    task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    frame = None
    while coroutine is not None:
        inner = getattr(coroutine, "cr_frame", None)
        if inner is not None and not inner.f_code.co_filename.startswith(_FOLDER):
            frame = inner
        coroutine = getattr(coroutine, "cr_await", None)
    return f" just before {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""


@contextlib.contextmanager
def entered(loop: Loop) -> Iterator[None]:
    """Inside, this loop is the running one, and ``time.monotonic`` is its clock.

    Garbage is collected outside only: the finalizer of what a test before left behind (a
    connection, say) would take this loop for its own, and its callbacks would change the run.
    """
    real, outer, collects = time.monotonic, _events._get_running_loop(), gc.isenabled()
    gc.disable()
    time.monotonic = loop.time
    _events._set_running_loop(loop)
    try:
        yield
    finally:
        _events._set_running_loop(outer)
        time.monotonic = real
        if collects:
            gc.enable()
