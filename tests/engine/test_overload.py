"""A worker whose heartbeats come late asks for a longer lease and takes less."""

from evosaga.orchestrator.engine.overload import LONGEST_LEASE, Concurrency, LoadMeter


def after(*late: float) -> LoadMeter:
    pace = LoadMeter(ttl=2.5, beat=0.5)
    for seconds in late:
        pace.note(seconds)
    return pace


def test_one_that_keeps_up_has_the_lease_and_the_beat_that_were_set() -> None:
    pace = after(*[0.01] * 20)
    assert (pace.ttl, pace.beat, pace.pressed, pace.slower) == (2.5, 0.5, False, 1.0)


def test_a_single_pause_however_long_says_nothing() -> None:
    pace = after(0.01, 40.0, 0.01)
    assert (pace.ttl, pace.beat, pace.pressed) == (2.5, 0.5, False)


def test_beats_that_are_late_again_and_again_lengthen_the_lease_and_slow_what_is_done() -> None:
    pace = after(2.0, 2.0, 0.1)
    assert (pace.ttl, pace.pressed, pace.slower) == (16.0, True, 16.0 / 2.5)
    assert pace.ttl / pace.beat >= 5, "there are several beats in a lease all the same"


def test_no_lease_is_longer_than_a_minute() -> None:
    assert after(30.0, 50.0).ttl == LONGEST_LEASE


def test_it_is_as_it_was_once_the_beats_are_in_time_again() -> None:
    assert after(2.0, 2.0, *[0.01] * 8).ttl == 2.5


def test_pressed_it_takes_half_of_what_it_drives_and_never_nothing() -> None:
    room = Concurrency(1000)
    taken = []
    for driving in (40, 20, 10, 5, 2, 1, 1):
        room.adapt(True, driving)
        taken.append(room.now)
    assert taken == [20, 10, 5, 2, 1, 1, 1]


def test_it_takes_more_again_step_by_step_up_to_its_capacity() -> None:
    room = Concurrency(100)
    room.adapt(True, 4)
    assert room.now == 2
    for _ in range(40):
        before = room.now
        room.adapt(False, before)
        assert before <= room.now <= max(before + 1, before * 1.25)
    assert room.now == 100
