"""What one look says about a connection, without any server."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from evosaga.orchestrator.whatsapp.health.connection_state import (
    CURES,
    Judgement,
    Record,
    after_reconnect,
    next_state,
)
from evosaga.orchestrator.whatsapp.reconciliation.classify import Name, found
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Memory, Row, Snapshot
from evosaga.sagas.whatsapp.row_status import FINAL_CODES

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = uuid.UUID("0197f3a0-0000-7000-8000-0000000000c1")
NAME = f"wa-{ID}"
PHONE = "5511987654321"
ROW = Row(ID, uuid.uuid4(), NAME, "connected", number=PHONE, born=True)
CONNECTED = Instance(NAME, "open", "0" * 16, phone=PHONE, made_by=ID, key_id="0a1b2c3d")
CLOSED = replace(CONNECTED, status="close", reason=428)
WELL = Record("connected", NOW - timedelta(days=1), looks=9, connected_at=NOW)


def seen(instance: Instance | None, memory: Memory | None = None, row: Row = ROW) -> Name:
    snapshot = Snapshot(
        instances={NAME: instance} if instance else {},
        memory={NAME: memory} if memory else {},
        rows=[row],
    )
    return found(snapshot, NAME, row)


def judged(one: Name, record: Record | None = WELL, *, eager: bool = False) -> Judgement:
    judgement = next_state(one, record, NOW, alert_after=900.0, eager=eager)
    assert judgement is not None
    return judgement


@pytest.mark.parametrize(
    ("instance", "memory", "state"),
    [
        (CONNECTED, None, "connected"),
        (CLOSED, "open", "connected"),
        (replace(CLOSED, phone=None), "close", "pending"),
        (replace(CONNECTED, phone=None), "open", "pending"),
        (CONNECTED, "connecting", "connecting"),
        (CLOSED, "close", "down"),
        (CONNECTED, "close", "down"),
        (replace(CLOSED, reason=401), "close", "needs_qr"),
        (None, "absent", "missing"),
        (CONNECTED, "absent", "half"),
        (CONNECTED, "half", "half"),
        (None, "foreign", "foreign"),
        (replace(CONNECTED, made_by=None), None, "foreign"),
        (replace(CONNECTED, passive=True, phone=None), None, "connected"),
        (replace(CLOSED, passive=True, phone=None), "close", "down"),
    ],
)
def test_what_is_seen_has_one_state(
    instance: Instance | None, memory: Memory | None, state: str
) -> None:
    assert judged(seen(instance, memory)).record.state == state
    assert state in CURES


def test_an_unclear_answer_changes_nothing() -> None:
    assert next_state(seen(CONNECTED, "unanswered"), WELL, NOW, alert_after=900.0) is None
    assert next_state(seen(None, "open"), WELL, NOW, alert_after=900.0) is None


def test_times_that_a_clock_put_back_left_ahead_hold_nothing_up() -> None:
    ahead = NOW + timedelta(hours=30)
    record = Record("down", ahead, looks=9, next_reconnect_at=ahead)
    said = judged(seen(CLOSED, "close"), record)
    assert said.reconnect
    assert said.record.since == NOW


@pytest.mark.fault("n7")
@pytest.mark.parametrize("code", sorted(FINAL_CODES))
def test_a_final_code_is_believed_at_once_and_never_reconnected(code: int) -> None:
    record: Record | None = WELL
    for _ in range(5):
        said = judged(seen(replace(CLOSED, reason=code), "close"), record)
        record = said.record
        assert (said.status, said.reconnect) == ("disconnected", False)
        state = "banned" if code in (402, 403) else "needs_qr"
        assert (record.state, record.reason) == (state, code)


@pytest.mark.parametrize("code", [408, 411, 428, 440, 500, 503, 515, None])
def test_another_code_is_believed_after_two_looks_and_reconnected_when_its_time_comes(
    code: int | None,
) -> None:
    one = seen(replace(CLOSED, reason=code), "close")
    first = judged(one)
    assert (first.status, first.reconnect) == (None, False)
    second = judged(one, first.record)
    assert (second.status, second.reconnect) == ("disconnected", False)
    at = second.record.next_reconnect_at
    assert at is not None
    assert NOW <= at <= NOW + timedelta(seconds=30)
    due = next_state(one, second.record, at, alert_after=0)
    assert due is not None
    assert due.reconnect


def test_a_final_code_from_before_the_phone_was_paired_again_says_nothing() -> None:
    old = replace(CLOSED, reason=401, closed_at=NOW - timedelta(hours=3))
    again = replace(WELL, connected_at=NOW - timedelta(hours=1))
    assert judged(seen(old, "close"), again).record.state == "down"
    assert judged(seen(replace(old, closed_at=None), "close"), again).record.state == "needs_qr"
    just_now = replace(old, closed_at=NOW - timedelta(hours=1))
    assert judged(seen(just_now, "close"), again).record.state == "needs_qr", "clocks differ"


@pytest.mark.fault("n10")
def test_a_connection_that_comes_and_goes_leaves_the_row_alone() -> None:
    record: Record | None = WELL
    for turn in range(10):
        one = seen(CLOSED, "close") if turn % 2 else seen(CONNECTED, "open")
        said = judged(one, record)
        record = said.record
        assert said.status is None
        assert not said.reconnect


@pytest.mark.fault("n10")
def test_who_is_connected_again_only_for_a_moment_waits_longer_for_the_next_try() -> None:
    record = judged(seen(CLOSED, "close"), judged(seen(CLOSED, "close")).record).record
    waits = []
    for _ in range(4):
        record = after_reconnect(ROW.id, record, NOW)
        assert record.next_reconnect_at
        waits.append((record.next_reconnect_at - NOW).total_seconds())
        record = judged(seen(CONNECTED, "open"), record).record
        assert record.reconnects, "one look does not make it steady"
        record = judged(seen(CLOSED, "close"), record).record
    assert all(later > 1.1 * sooner for sooner, later in pairwise(waits))
    for _ in range(3):
        record = judged(seen(CONNECTED, "open"), record).record
    assert (record.reconnects, record.next_reconnect_at) == (0, None)


def test_tries_to_reconnect_become_rare_but_never_end() -> None:
    record = WELL
    for _ in range(50):
        record = after_reconnect(ROW.id, record, NOW)
    assert record.next_reconnect_at
    assert 2700 <= (record.next_reconnect_at - NOW).total_seconds() <= 4500


@pytest.mark.fault("n8")
def test_those_that_went_down_together_do_not_come_back_at_the_same_moment() -> None:
    times = set()
    for _ in range(50):
        twice = judged(seen(CLOSED, "close"), judged(seen(CLOSED, "close")).record)
        times.add(twice.record.next_reconnect_at)
    assert len(times) > 40


def test_a_row_that_waits_for_its_first_phone_goes_on_waiting() -> None:
    pending = replace(ROW, status="pending", number=None)
    one = seen(replace(CLOSED, phone=None, reason=None), "close", pending)
    said = judged(one, judged(one, None).record)
    assert (said.record.state, said.status, said.reconnect) == ("pending", None, False)


def test_a_row_says_connected_at_once_and_gets_the_number() -> None:
    for status in ("pending", "disconnected"):
        said = judged(seen(CONNECTED, "open", replace(ROW, status=status, number=None)), None)
        assert (said.status, said.number) == ("connected", PHONE)
    said = judged(seen(CONNECTED, "open", replace(ROW, number="5511000000000")))
    assert (said.status, said.number) == ("connected", PHONE)
    assert judged(seen(CONNECTED, "open")).status is None


@pytest.mark.fault("d9", "n11")
@pytest.mark.parametrize("memory", ["absent", "foreign"])
def test_what_is_gone_or_somebody_elses_is_disconnected_and_never_reconnected(
    memory: Memory,
) -> None:
    first = judged(seen(None, memory))
    second = judged(seen(None, memory), first.record)
    assert (first.status, second.status) == (None, "disconnected")
    assert not first.reconnect
    assert not second.reconnect


def test_a_long_disconnection_is_told_once_and_again_only_after_it_was_well() -> None:
    long = replace(WELL, state="down", since=NOW - timedelta(seconds=901), looks=20)
    said = judged(seen(CLOSED, "close"), long)
    assert said.alert
    assert not judged(seen(CLOSED, "close"), said.record).alert
    assert not judged(seen(CONNECTED, "open"), said.record).alert
    well = judged(seen(CONNECTED, "open"), said.record).record
    assert well.alerted_at is None
    soon = replace(long, since=NOW - timedelta(seconds=899))
    assert not judged(seen(CLOSED, "close"), soon).alert
    off = next_state(seen(CLOSED, "close"), long, NOW, alert_after=0)
    assert off is not None
    assert not off.alert


def test_since_counts_the_whole_outage_whatever_its_state_is_called() -> None:
    record = judged(seen(CLOSED, "close")).record
    later = NOW + timedelta(minutes=5)
    said = next_state(seen(CONNECTED, "connecting"), record, later, alert_after=900.0)
    assert said is not None
    assert (said.record.state, said.record.since, said.record.looks) == ("connecting", NOW, 2)


def test_a_person_who_asks_need_not_wait() -> None:
    said = judged(seen(CLOSED, "close"), None, eager=True)
    assert (said.status, said.reconnect) == ("disconnected", True)
