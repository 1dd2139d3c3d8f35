"""The test kit on the starter's hotel: what it finds, how it says so, and what it refuses."""

import ast
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from evosaga.orchestrator.commands.testing.mutants import mutants, survivors
from evosaga.sagas.outcome import Done, Finding, Held, Sighting, Unknown
from evosaga.testing import (
    Broken,
    Torture,
    completed,
    done,
    given,
    lost,
    refused,
    run,
    runs,
    supersedes,
    waits,
)
from tests.commands.testing.hotel import imported, made, with_step


@pytest.fixture(scope="module")
def hotel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with imported(made(tmp_path_factory.mktemp("starter"), "inn"), "inn") as sagas:
        yield sagas


def torture(hotel: Any, saga: Any = None, faults: int = 1, **data: Any) -> Torture:
    """The hotel's torture, of a booking that goes well."""
    booking = hotel.BookRoom(**{"room": 101, "guest": "ada", "euros": 80} | data)

    class World(hotel.Services):  # type: ignore[misc]
        def state(self) -> Any:
            return [self.rooms.taken, self.bank.charges, self.door.keys]

    return Torture(saga or hotel.BOOK_A_ROOM, [booking], World, faults, name="World")


async def hasty_charge(ctx: Any) -> Any:
    """``charge`` without its look."""
    return Done({"receipt": await ctx.services.bank.charge(str(ctx.saga_id), ctx.input.euros)})


def test_every_single_fault_leaves_the_hotel_all_or_nothing(hotel: Any) -> None:
    tally = torture(hotel)()
    assert tally.runs > 40
    assert {end for (end,) in tally.endings} == {"book-a-room completed", "book-a-room compensated"}
    for seen in ("take-over", "zombie woken", "landed late", "duplicate command", "call: lost"):
        assert tally.notes[seen], seen


def test_without_its_look_a_charge_is_found_to_happen_twice(hotel: Any) -> None:
    broken = torture(hotel, with_step(hotel.BOOK_A_ROOM, "charge", do=hasty_charge))
    with pytest.raises(Broken) as found:
        broken()
    story = str(found.value)
    assert "bank.charge took effect twice" in story
    assert ">>" in story
    assert "the answer gets lost" in story

    again = re.search(r"torture\.repeat\((\(.*\))\)", story)
    assert again is not None
    with pytest.raises(Broken, match=r"bank\.charge took effect twice"):
        broken.repeat(ast.literal_eval(again[1]))


def test_an_undo_that_always_fails_ends_parked_and_is_no_error(hotel: Any) -> None:
    async def never(_ctx: Any) -> Any:
        return Unknown("no_answer", "the hotel's book does not answer")

    stuck = with_step(hotel.BOOK_A_ROOM, "reserve", undo=never)
    tally = torture(hotel, stuck, euros=500)()
    assert tally.endings["book-a-room failed",] > 0


def test_each_mistake_in_a_step_is_caught(hotel: Any) -> None:
    assert {one.mistake for one in mutants(hotel.BOOK_A_ROOM)} == {
        "it does not look when in doubt",
        "its undo forgets to undo",
        "it says done and does nothing",
    }
    assert survivors(torture(hotel)) == []


def test_a_world_that_keeps_nothing_catches_no_mistake_and_that_is_said(hotel: Any) -> None:
    class Blind(hotel.Services):  # type: ignore[misc]
        def state(self) -> Any:
            return None

    blind = replace(torture(hotel), world=Blind)
    assert any("its undo forgets to undo" in one for one in survivors(blind))


def test_a_world_that_is_not_deterministic_is_refused_with_the_first_difference(
    hotel: Any,
) -> None:
    class Dice(hotel.Services):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.luck = random.random()

    with pytest.raises(Broken, match="two runs with the same faults differ: luck is"):
        replace(torture(hotel), world=Dice)()


def test_an_answer_that_is_not_deterministic_is_refused_as_well(hotel: Any) -> None:
    async def lucky(ctx: Any) -> Any:
        await ctx.services.door.send_key(ctx.input.room, ctx.input.guest)
        return Done({"luck": random.random()})

    with pytest.raises(Broken, match=r"two runs .* differ: what the steps said is \[.*'luck'"):
        torture(hotel, with_step(hotel.BOOK_A_ROOM, "send-key", do=lucky))()


def test_a_step_that_reads_the_wall_clock_is_told_where(hotel: Any) -> None:
    async def timed(ctx: Any) -> Any:
        time.time()
        return Done()

    with pytest.raises(Broken, match=r"reads the wall clock at .*test_torture\.py:\d+; take ctx"):
        torture(hotel, with_step(hotel.BOOK_A_ROOM, "send-key", do=timed))()


def test_a_step_that_blocks_the_loop_is_named(hotel: Any) -> None:
    async def sleepy(ctx: Any) -> Any:
        time.sleep(0.6)  # noqa: ASYNC251  # what is tested
        await ctx.services.door.send_key(ctx.input.room, ctx.input.guest)
        return Done()

    with pytest.raises(Broken, match=r"blocks the event loop just before .*test_torture\.py"):
        torture(hotel, with_step(hotel.BOOK_A_ROOM, "send-key", do=sleepy))()


def test_a_saga_that_does_not_end_without_any_fault_is_no_subject_for_torture(hotel: Any) -> None:
    async def broken(_ctx: Any) -> Any:
        raise RuntimeError

    with pytest.raises(Broken, match="step raised"):
        torture(hotel, with_step(hotel.BOOK_A_ROOM, "send-key", do=broken))()


def test_a_probe_that_contradicts_the_end_is_a_broken_law(hotel: Any) -> None:
    async def blind(_ctx: Any) -> Finding:
        return Finding(Sighting.ABSENT, "the room is free")

    with pytest.raises(Broken, match="the probe of reserve says the room is free"):
        torture(hotel, with_step(hotel.BOOK_A_ROOM, "reserve", probe=blind))()


def test_a_day_of_waiting_takes_no_time(hotel: Any) -> None:
    async def tomorrow(ctx: Any) -> Any:
        if ctx.age < 86_400:
            return Held("too_early", "not before tomorrow", 86_400 - ctx.age)
        return Done()

    began = time.monotonic()
    booking = hotel.BookRoom(room=101, guest="ada", euros=80)
    patient = with_step(hotel.BOOK_A_ROOM, "send-key", do=tomorrow)
    ended = run(patient, booking, hotel.Services)
    assert ended.status == "completed"
    assert ended.seconds > 86_000
    assert time.monotonic() - began < 20


def test_a_history_says_what_comes_next_and_what_does_not(hotel: Any) -> None:
    saga = hotel.BOOK_A_ROOM
    begun = given(saga, done("reserve"), lost("charge"))
    begun.then(runs("charge", attempt=2, in_doubt=True))
    begun.when(done("charge", receipt="R-1"), done("send-key")).then(completed())
    with pytest.raises(AssertionError, match=r"now runs charge \(attempt=2, in_doubt=True\), not"):
        begun.then(completed())
    with pytest.raises(AssertionError, match="so send-key is not tried"):
        begun.when(done("send-key"))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_pairs_of_faults_take_less_than_a_minute(hotel: Any) -> None:
    began = time.process_time()
    assert torture(hotel)(2).runs > 1000
    assert time.process_time() - began < 60


@pytest.mark.parametrize("policy", ["wait", "supersede"])
def test_of_two_bookings_of_one_room_one_waits_whatever_goes_wrong(hotel: Any, policy: Any) -> None:
    beside = replace(hotel.BOOK_A_ROOM, on_conflict=policy)
    tally = torture(hotel, beside)()
    both = [ends for ends in tally.endings if len(ends) == 2]
    assert both
    assert ("book-a-room compensated", "book-a-room completed") in both
    assert tally.notes["turn: crash"] > 0
    assert tally.notes["follow-up saga.cancel"] > 0 or policy == "wait"


def test_an_engine_that_does_not_wait_is_caught(
    hotel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("driver", "commit", "engine", "projection"):
        monkeypatch.setattr(f"evosaga.orchestrator.engine.{module}.waits", lambda _state: False)
    with pytest.raises(Broken, match="which has the same business key, is running"):
        torture(hotel, replace(hotel.BOOK_A_ROOM, on_conflict="wait"))()


def test_a_policy_is_asked_in_one_line(hotel: Any) -> None:
    saga = hotel.BOOK_A_ROOM
    given(saga).beside(saga).then(refused("in_progress"))
    eager = replace(saga, on_conflict={"book-a-room": "supersede", "*": "wait"})
    given(eager).beside(saga).then(supersedes())
    given(eager).beside(replace(saga, name="clean-a-room")).then(waits())
    given(eager).beside(saga, "compensating").then(waits())
    given(eager).beside(saga, "failed").then(refused("in_progress"))
    given(eager).beside(saga).beside(saga).then(supersedes())
