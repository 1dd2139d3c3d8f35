"""Your first saga, from an idea to a worker that runs it.

A hotel wants to book rooms: reserve the room, charge the card, send the guest a key. Three
systems, no transaction around them, and each may fail when the others have gone ahead. That is
a saga. It takes one file, and below is all of it; put it into ``sagas/`` and it is found there.
Then come tests that walk it by hand, and at the end a real worker runs it on real servers.

Read it from top to bottom.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeAlias

import pytest
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events.database import Pool
from evosaga.events.model import CompensationBegan, SagaCompleted, SagaEvent, SagaStarted
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domain
from evosaga.orchestrator.engine.decider import Idle, Record, Run, decide, intent
from evosaga.orchestrator.engine.execution import outcome_event
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.state import State, evolve, replay
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.worker import running_worker
from evosaga.sagas.context import StepContext
from evosaga.sagas.definition import (
    Admission,
    DefinitionError,
    Refusal,
    Saga,
    compensatable,
    pivot,
    retryable,
)
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected, Unknown
from evosaga.sagas.registry import registry_of
from tests.support.driving import outcome, publish

# --- 1. What a command must look like ----------------------------------------------------------


class BookRoom(BaseModel):
    """The ``data`` of a ``room.book`` command. What doesn't fit is refused before anything runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    room: Annotated[int, Field(ge=100, le=999)]
    guest: Annotated[str, Field(pattern=r"\A[a-z]{2,20}\z")]
    euros: Annotated[int, Field(gt=0)]


# --- 2. May it begin? --------------------------------------------------------------------------


async def admit(
    connection: Any, hotel: Redis, bookings: Sequence[tuple[uuid.UUID, BookRoom]]
) -> list[Admission | Refusal]:
    """Called inside the accepting transaction, with a batch. Looks, and changes nothing.

    The business key is what only one open saga may hold: no two guests book one room at once.
    """
    return [
        Refusal("no_such_room", f"the hotel has no room {booking.room}")
        if booking.room == 113
        else Admission(f"room/{booking.room}", facts={"door": f"door-{booking.room}"})
        for _, booking in bookings
    ]


# --- 3. The steps ------------------------------------------------------------------------------
#
# A step does one thing to one system and says how that ended:
#
#   Done      it is there
#   Rejected  nothing happened, and trying again would not help
#   Unknown   it may have happened: burns an attempt, and the next one has to look first
#   Held      not now, the system is down: burns no attempt, goes on when it is back
#
# An exception that a step lets through counts as Unknown, and so does a timeout.
#
# A step may run twice (a worker can die after the effect and before saying so), so it is written
# to be repeated. Here every effect is filed under the saga's id, so a second try finds the first.
#
# What it needs for that, clients say, comes with every call as ``ctx.services``. Here one Redis
# plays the hotel's book, the bank and the door.

Booking: TypeAlias = StepContext[BookRoom, Redis]


async def reserve(ctx: Booking) -> Outcome:
    """Put our name on the room, unless somebody else's is on it."""
    room, me = f"room:{ctx.input.room}", str(ctx.saga_id)
    try:
        if await ctx.services.set(room, me, nx=True):
            return Done()
        holder = await ctx.services.get(room)
    except RedisError:
        return Held("hotel_down", "the hotel's book can't be reached", in_doubt=True)
    return Done() if holder == me.encode() else Rejected("room_taken", "the room is taken")


async def release(ctx: Booking) -> Outcome:
    """Take our name off the room: the undo of ``reserve``. Never a stranger's."""
    room, me = f"room:{ctx.input.room}", str(ctx.saga_id)
    if await ctx.services.get(room) == me.encode():
        await ctx.services.delete(room)
    return Done()


async def charge(ctx: Booking) -> Outcome:
    """Take the money, once a saga. After this there is no way back, only forward."""
    redis, me = ctx.services, str(ctx.saga_id)
    if ctx.in_doubt and await redis.hexists("charges", me):
        return Done({"found": True})
    if ctx.input.euros > int(await redis.get(f"balance:{ctx.input.guest}") or 0):
        return Rejected("card_declined", "the card does not cover that")
    await redis.hset("charges", me, ctx.input.euros)
    return Done()


async def send_key(ctx: Booking) -> Outcome:
    """Send the key to the door that admission found. Tried until it works."""
    await ctx.services.hset("keys", ctx.input.guest, ctx.facts["door"])
    return Done()


# --- 4. The saga: a sentence -------------------------------------------------------------------

BOOK_A_ROOM = Saga(
    name="book-a-room",
    version=1,
    command="room.book",
    input=BookRoom,
    admit=admit,
    steps=(
        compensatable("reserve", do=reserve, undo=release),
        pivot("charge", do=charge),
        retryable("send-key", do=send_key),
    ),
)


# --- 5. Walk it by hand ------------------------------------------------------------------------
#
# ``decide`` is a pure function: a history goes in, the next thing to do comes out. No server, no
# clock. What the engine adds is only to do it, and to write down what came of it.

BEGINNING = SagaStarted(
    saga="book-a-room",
    version=1,
    command="room.book",
    command_id="booking-1",
    command_hash="…",
    business_key="room/101",
    input={"room": 101, "guest": "ada", "euros": 80},
)


def attempt(state: State, said: Outcome) -> list[SagaEvent]:
    """One turn of the engine's wheel: claim the attempt that is due, and record its outcome."""
    due = decide(BOOK_A_ROOM, state)
    assert isinstance(due, Run)
    claim = intent(due, worker="by-hand", lease_seconds=30.0)
    claimed = evolve(state, claim)
    assert claimed.in_flight is not None
    return [claim, outcome_event(claimed.in_flight, said)]


def test_when_every_step_is_done_the_saga_is_completed() -> None:
    history: list[SagaEvent] = [BEGINNING]
    for name in ("reserve", "charge", "send-key"):
        due = decide(BOOK_A_ROOM, replay(history))
        assert isinstance(due, Run)
        assert (due.step.name, due.direction) == (name, "forward")
        history += attempt(replay(history), Done())

    assert decide(BOOK_A_ROOM, replay(history)) == Record(SagaCompleted())
    assert [event.type for event in history] == [
        "saga.started",
        *("step.started", "step.succeeded") * 3,
    ]


def test_when_the_card_is_declined_the_reservation_is_taken_back() -> None:
    history: list[SagaEvent] = [BEGINNING]
    history += attempt(replay(history), Done())
    history += attempt(replay(history), Rejected("card_declined", "no money"))

    turn = decide(BOOK_A_ROOM, replay(history))
    assert isinstance(turn, Record)
    assert isinstance(turn.event, CompensationBegan)
    assert turn.event.steps == ("reserve",)

    history.append(turn.event)
    undo = decide(BOOK_A_ROOM, replay(history))
    assert isinstance(undo, Run)
    assert (undo.step.name, undo.effect) == ("reserve", release)


def test_an_unknown_outcome_is_not_a_failure_so_the_step_is_asked_again() -> None:
    """The bank did not answer. Was the money taken? Nobody knows, so nobody acts on a guess."""
    history: list[SagaEvent] = [BEGINNING]
    history += attempt(replay(history), Done())
    history += attempt(replay(history), Unknown("timeout", "the bank did not answer"))

    again = decide(BOOK_A_ROOM, replay(history))
    assert isinstance(again, Run)
    assert (again.step.name, again.attempt) == ("charge", 2)
    assert again.delay > 0
    assert replay(history).progress("charge").in_doubt, "attempt 2 will see ctx.in_doubt"

    # Even a refusal does not undo the saga now: the first try may have taken the money.
    # A person has to look, so it is parked.
    history += attempt(replay(history), Rejected("card_declined", "no money"))
    parked = decide(BOOK_A_ROOM, replay(history))
    assert isinstance(parked, Record)
    assert parked.event.type == "saga.failed"


def test_an_outage_burns_no_attempt() -> None:
    history: list[SagaEvent] = [BEGINNING]
    for _ in range(100):
        history += attempt(replay(history), Held("hotel_down", "no answer"))
    due = decide(BOOK_A_ROOM, replay(history))
    assert isinstance(due, Run)
    assert (due.step.name, due.attempt) == ("reserve", 1)


def test_while_an_attempt_is_out_there_is_nothing_to_decide() -> None:
    due = decide(BOOK_A_ROOM, replay([BEGINNING]))
    assert isinstance(due, Run)
    claimed = evolve(replay([BEGINNING]), intent(due, worker="by-hand", lease_seconds=30.0))
    assert decide(BOOK_A_ROOM, claimed) == Idle("in flight")


def test_a_saga_that_could_not_be_undone_is_refused_when_it_is_imported() -> None:
    """Charging first and reserving later: when the room is gone, the money is gone too."""
    with pytest.raises(DefinitionError, match="'reserve' comes after pivot step 'charge'"):
        Saga(
            name="book-a-room-the-wrong-way-round",
            version=1,
            command="room.book",
            input=BookRoom,
            admit=admit,
            steps=(
                pivot("charge", do=charge),
                compensatable("reserve", do=reserve, undo=release),
            ),
        )


# --- 6. And really -----------------------------------------------------------------------------
#
# A *domain* is what a worker is given to run: sagas, and how to open what their steps need. This
# one shares the worker's own Redis. The product's is ``evosaga.orchestrator.whatsapp.domain``; a
# saga that lies in ``sagas/`` is found and run with it.
#
# The other files in this folder use the same hotel and show one thing each.


@asynccontextmanager
async def open_hotel(
    settings: Settings, pool: Pool, redis: Redis, lease: Lease | None
) -> AsyncIterator[Redis]:
    """Called once by each worker; what it yields is the ``ctx.services`` of every step."""
    yield redis


HOTEL = Domain(sagas=registry_of([BOOK_A_ROOM]), open_services=open_hotel)


@pytest.fixture
async def hotel(settings: Settings, redis: Redis) -> AsyncIterator[Redis]:
    """A hotel in which Ada has a hundred euros and Bob has none, and a worker."""
    await redis.set("balance:ada", 100)
    async with running_worker(settings, HOTEL):
        yield redis


async def order(redis: Redis, room: int, guest: str, euros: int = 80) -> str:
    """Publish the command, as any program in any language could; its id, which is the saga's."""
    data = {"room": room, "guest": guest, "euros": euros}
    return await publish(redis, {"id": str(uuid.uuid4()), "type": "room.book", "data": data})


async def book(redis: Redis, pool: Pool, room: int, guest: str, euros: int = 80) -> SagaView:
    """The same, and the saga once it is over."""
    return await outcome(pool, await order(redis, room, guest, euros))


async def test_a_booking_ends_with_a_key_in_the_guests_hand(hotel: Redis, pool: Pool) -> None:
    saga = await book(hotel, pool, room=101, guest="ada")

    assert saga.status == "completed"
    assert await hotel.get("room:101") == str(saga.saga_id).encode()
    assert await hotel.hget("charges", str(saga.saga_id)) == b"80"
    assert await hotel.hget("keys", "ada") == b"door-101"
