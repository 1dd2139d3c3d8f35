"""When a server is asked, how much at once, and when it is left in peace: pure, on a made-up clock.

Stories are told in words: ``sick``, ``well`` and ``wrong`` (misconfigured) are calls and how they
ended, ``lost`` is a call that ended without a meaning, a number is so many seconds that pass.
"""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from structlog.testing import capture_logs

from evosaga.sagas.whatsapp.evolution.circuit_breaker import (
    FAILURES,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    PROVEN,
    STUCK,
    CallNotPermitted,
    CallOutcome,
    CircuitBreaker,
)
from tests.support.fuzzing import fuzzed

ENDS = {
    "sick": CallOutcome.SICK,
    "well": CallOutcome.WELL,
    "wrong": CallOutcome.MISCONFIGURED,
    "lost": None,
}
DOWN = "sick " * FAILURES


@dataclass
class Server:
    """A breaker, its clock, and the calls that are out."""

    places: int = 64
    chance: float = 0.0
    now: float = 100.0
    queue: int | None = None
    breaker: CircuitBreaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = CircuitBreaker(
            "there",
            self.places,
            queue=self.queue,
            clock=lambda: self.now,
            chance=lambda: self.chance,
        )

    @property
    def state(self) -> str:
        return self.breaker.state.state

    async def ask(self) -> int | CallNotPermitted:
        return await self.breaker.enter(0.0)

    async def call(self, how: str) -> CallNotPermitted | None:
        place = await self.ask()
        if isinstance(place, CallNotPermitted):
            return place
        self.breaker.leave(place, ENDS[how], f"it was {how}")
        return None

    async def tell(self, story: str) -> None:
        for word in story.split():
            if word in ENDS:
                await self.call(word)
            else:
                self.now += float(word)

    async def fill(self, most: int = 1000) -> list[int]:
        """As many calls as are let through at once."""
        out: list[int] = []
        while len(out) < most and isinstance(place := await self.ask(), int):
            out.append(place)
        return out


@pytest.mark.parametrize(
    ("story", "state"),
    [
        ("", "closed"),
        ("well " * 100, "closed"),
        ("sick " * (FAILURES - 1), "closed"),
        (DOWN, "open"),
        ("sick " * (FAILURES - 1) + "well " + "sick " * (FAILURES - 1), "closed"),
        ("sick " * (FAILURES - 1) + "lost sick", "open"),
        ("lost " * 100, "closed"),
        ("wrong", "open"),
        ("well " * 100 + "wrong", "open"),
        (DOWN + "0.9", "open"),
        (DOWN + "0.9 well well", "open"),
        (DOWN + "1", "half-open"),
        (DOWN + "1 lost lost lost", "half-open"),
        (DOWN + "1 sick", "open"),
        (DOWN + "1 wrong", "open"),
        (DOWN + "1 well sick", "open"),
        (DOWN + "1 " + "well " * 14 + "sick", "open"),
        (DOWN + "1 " + "well " * 14, "half-open"),
        (DOWN + "1 " + "well " * 15, "closed"),
        ("wrong 1 " + "well " * 15, "closed"),
        (DOWN + "1 " + "well " * 15 + "sick " * (FAILURES - 1), "closed"),
        # With few calls, time without trouble is as good.
        (DOWN + "1 well 29 well", "half-open"),
        (DOWN + "1 well 30 well", "closed"),
        (DOWN + "1000", "half-open"),
    ],
)
async def test_what_happens_opens_and_closes_it(story: str, state: str) -> None:
    server = Server()
    await server.tell(story)
    assert server.state == state


async def test_each_failure_before_it_is_closed_doubles_the_pause_up_to_a_limit() -> None:
    server = Server()
    await server.tell(DOWN)
    pauses = []
    for _ in range(8):
        pauses.append(server.breaker.state.retry_in)
        await server.tell(f"{pauses[-1]} sick")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    await server.tell("30 " + "well " * PROVEN)
    await server.tell(DOWN)
    assert server.breaker.state.retry_in == FIRST_PAUSE, "a new outage begins anew"


async def test_who_comes_when_enough_wait_for_a_place_is_sent_away_at_once() -> None:
    """What waits takes up room in the worker, which the sagas of other servers need."""
    server = Server(places=1, queue=2)
    place = await server.ask()
    assert isinstance(place, int)
    waiting = [asyncio.create_task(server.breaker.enter(60.0)) for _ in range(2)]
    await asyncio.sleep(0)
    turned_away = await server.breaker.enter(60.0)
    assert isinstance(turned_away, CallNotPermitted)
    assert turned_away.code == "busy"
    server.breaker.leave(place, CallOutcome.WELL)
    first = await waiting[0]
    assert isinstance(first, int)
    again = asyncio.create_task(server.breaker.enter(60.0))
    await asyncio.sleep(0)
    assert not again.done(), "there is room in the queue again"
    for _ in range(2):
        server.breaker.leave(first, CallOutcome.WELL)
    assert isinstance(await waiting[1], int)
    assert isinstance(await again, int)


async def test_its_state_tells_since_when_and_why() -> None:
    server = Server()
    server.now += 7
    told = server.breaker.state
    assert (told.state, told.since_seconds, told.reason, told.retry_in) == ("closed", 7, None, None)
    await server.tell(DOWN + "0.25")
    told = server.breaker.state
    assert (told.state, told.since_seconds, told.reason) == ("open", 0.25, "it was sick")
    assert told.retry_in == 0.75
    await server.tell("0.75 wrong 10")
    told = server.breaker.state
    assert (told.state, told.since_seconds, told.reason) == ("half-open", 11, "it was wrong")
    assert told.retry_in == 0.0


async def test_nothing_is_sent_while_it_is_open_and_nobody_comes_back_too_early() -> None:
    for chance in (0.0, 0.5, 1.0):
        server = Server(chance=chance)
        await server.tell(DOWN)
        shut = await server.ask()
        assert isinstance(shut, CallNotPermitted)
        assert (shut.code, shut.reason) == ("unavailable", "it was sick")
        assert 1.0 + chance <= shut.retry_after <= 1.25 + chance
        await server.tell("1 wrong")
        shut = await server.ask()
        assert isinstance(shut, CallNotPermitted)
        assert shut.code == "misconfigured"


async def test_half_open_it_lets_one_call_through_then_two_then_four_then_eight() -> None:
    server = Server()
    await server.tell(DOWN + "1")
    rounds = []
    while server.state != "closed":
        out = await server.fill()
        rounds.append(len(out))
        for place in out:
            server.breaker.leave(place, CallOutcome.WELL)
    assert rounds == [1, 2, 4, 8]
    assert len(await server.fill()) == server.places


async def test_one_failure_half_open_is_enough_and_the_others_count_no_more() -> None:
    server = Server()
    await server.tell(DOWN + "1 well well well")
    out = await server.fill()
    assert len(out) == 4
    server.breaker.leave(out[0], CallOutcome.SICK)
    for place in out[1:]:
        server.breaker.leave(place, CallOutcome.WELL)
    assert server.state == "open"
    server.now += 2
    assert len(await server.fill()) == 1, "it begins with one again"


async def test_a_call_that_began_before_it_opened_says_nothing_about_how_things_are() -> None:
    server = Server()
    old = await server.fill(20)
    await server.tell(DOWN)
    assert server.breaker.state.retry_in == 1.0
    server.now += 0.5
    server.breaker.leave(old.pop(), CallOutcome.SICK)
    assert server.breaker.state.retry_in == 0.5, "the pause is not made longer"
    server.now += 0.5
    for how in (CallOutcome.SICK, CallOutcome.MISCONFIGURED, *[CallOutcome.WELL] * 17):
        server.breaker.leave(old.pop(), how)
        assert server.state == "half-open"
    assert len(await server.fill()) == 1


async def test_so_many_calls_are_out_at_once_and_no_more() -> None:
    server = Server(places=3)
    first, *others = await server.fill()
    assert len(others) == 2
    shut = await server.ask()
    assert isinstance(shut, CallNotPermitted)
    assert (shut.code, shut.reason) == ("busy", "3 calls are out already")
    assert 0.5 <= shut.retry_after <= 1.0, "there will be a place in a moment"
    server.now += STUCK + 0.1
    shut = await server.ask()
    assert isinstance(shut, CallNotPermitted)
    assert 5.0 <= shut.retry_after <= 10.0, "nobody comes back: others have more use for the room"
    server.breaker.leave(first, CallOutcome.WELL)
    assert len(await server.fill()) == 1
    assert server.state == "closed", "to be busy is no trouble"


async def test_calls_that_hang_from_before_still_take_their_places() -> None:
    """However often it opened meanwhile, no more are out than the server should bear."""
    server = Server(places=8)
    hanging = await server.fill(7)
    await server.tell(DOWN + "1 " + "well " * PROVEN)
    assert server.state == "closed"
    assert len(await server.fill()) == 1
    for place in hanging:
        server.breaker.leave(place, CallOutcome.SICK)
    assert server.state == "closed"
    assert len(await server.fill()) == 7


# --- waiting for a place -----------------------------------------------------------------------


async def queued(server: Server, many: int) -> list[asyncio.Task[int | CallNotPermitted]]:
    waiting = [asyncio.create_task(server.breaker.enter(60.0)) for _ in range(many)]
    await asyncio.sleep(0)
    return waiting


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_gets_the_next_place_first_come_first_served() -> None:
    server = Server(places=1)
    [place] = await server.fill()
    waiting = await queued(server, 3)
    for nth in range(3):
        server.breaker.leave(place, CallOutcome.WELL)
        await settled()
        assert [task.done() for task in waiting] == [n <= nth for n in range(3)]
        late = await server.ask()
        assert isinstance(late, CallNotPermitted), "who comes later does not get in before"
        place = waiting[nth].result()  # type: ignore[assignment]
        assert isinstance(place, int)


@pytest.mark.fault("o6")
async def test_nobody_waits_for_a_server_that_hangs() -> None:
    """Waiting takes room in the worker, which those have use for who want something else."""
    server = Server(places=2)
    server.now += 100
    out = await server.fill()
    [waiting] = await queued(server, 1)
    assert not waiting.done(), "the calls have only just begun"
    server.now += 3
    answer = await asyncio.wait_for(server.breaker.enter(60.0), 5)
    assert isinstance(answer, CallNotPermitted)
    assert answer.code == "busy"
    server.breaker.leave(out[0], CallOutcome.WELL)
    await settled()
    assert waiting.done()
    [again] = await queued(server, 1)
    assert not again.done(), "it moves again, so it is worth waiting"
    again.cancel()


async def test_all_who_wait_are_told_at_once_when_it_opens() -> None:
    server = Server(places=FAILURES)
    out = await server.fill()
    waiting = await queued(server, 20)
    for place in out:
        server.breaker.leave(place, CallOutcome.SICK)
    await settled()
    told = [task.result() for task in waiting if task.done()]
    # Some got in while the failures were being counted; their calls are old by now.
    assert [answer for answer in told if isinstance(answer, CallNotPermitted)]
    assert len(told) == 20
    assert server.state == "open"
    for answer in told:
        if isinstance(answer, int):
            server.breaker.leave(answer, CallOutcome.WELL)
    server.now += 1
    assert len(await server.fill()) == 1


async def test_half_open_those_who_wait_come_in_as_calls_go_well() -> None:
    server = Server()
    await server.tell(DOWN + "1")
    [probe] = await server.fill()
    waiting = await queued(server, 10)
    assert not any(task.done() for task in waiting)
    server.breaker.leave(probe, CallOutcome.WELL)
    await settled()
    assert sum(task.done() for task in waiting) == 2
    for task in waiting[:2]:
        server.breaker.leave(task.result(), CallOutcome.WELL)  # type: ignore[arg-type]
    await settled()
    assert sum(task.done() for task in waiting) == 2 + 4
    for task in waiting:
        task.cancel()


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    server = Server(places=1)
    [place] = await server.fill()
    waiting = await queued(server, 3)
    waiting[0].cancel()
    await settled()
    server.breaker.leave(place, CallOutcome.WELL)
    waiting[1].cancel()  # in the same moment in which its place was given to it
    await settled()
    assert waiting[1].cancelled()
    assert isinstance(waiting[2].result(), int), "so the next one has it"
    server.breaker.leave(waiting[2].result(), CallOutcome.WELL)  # type: ignore[arg-type]
    assert len(await server.fill()) == 1


ACTIONS = st.lists(
    st.one_of(
        st.just("ask"),
        st.sampled_from(sorted(ENDS)),
        st.floats(0.1, 40.0).map(str),
    ),
    max_size=120,
)


@fuzzed(ACTIONS, st.integers(1, 20))
def test_no_place_is_ever_lost_or_given_twice(actions: list[str], places: int) -> None:
    async def live() -> None:
        server, out = Server(places=places), list[int]()
        for action in actions:
            if action == "ask":
                was = server.state
                answer = await server.ask()
                if isinstance(answer, int):
                    assert was != "open"
                    out.append(answer)
                else:
                    assert answer.retry_after >= 0
            elif action in ENDS:
                if out:
                    server.breaker.leave(out.pop(0), ENDS[action], action)
            else:
                server.now += float(action)
            assert len(out) <= places
        for place in out:
            server.breaker.leave(place, None)
        server.now += LONGEST_PAUSE
        for _ in range(PROVEN):
            assert await server.call("well") is None
        assert server.state == "closed"
        assert len(await server.fill()) == places

    asyncio.run(live())


# --- what people are told ----------------------------------------------------------------------


async def test_an_outage_is_two_lines_however_many_calls_it_fails() -> None:
    server = Server()
    with capture_logs() as logged:
        await server.tell(DOWN + "sick " * 1000)
        for _ in range(10):
            await server.tell("30 sick " + "sick " * 100)
        await server.tell("30 " + "well " * 1000)
    [began, ended] = logged
    assert (began["event"], began["log_level"]) == ("evolution unavailable", "error")
    assert (began["server"], began["reason"], began["retry_in"]) == ("there", "it was sick", 1.0)
    assert (ended["event"], ended["log_level"]) == ("evolution is back", "info")
    assert ended["after_seconds"] == 330.0


async def test_an_outage_that_becomes_another_is_told_again() -> None:
    server = Server()
    with capture_logs() as logged:
        await server.tell(DOWN + "1 wrong 2 wrong 4 wrong 8 sick 16 sick")
    assert [line["event"] for line in logged] == [
        "evolution unavailable",
        "evolution misconfigured",
        "evolution unavailable",
    ]
