"""Which integrations a round asks about by name, whatever number of them a server has."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from evosaga.orchestrator.whatsapp.health import selection as module
from evosaga.orchestrator.whatsapp.health.connection_state import Record
from evosaga.orchestrator.whatsapp.health.selection import Selection, in_turn
from evosaga.orchestrator.whatsapp.integrations.smallest import Smallest
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import implausibility
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Row, Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86400.0
PHONE = "5511900000000"


def row(number: int) -> Row:
    return Row(
        uuid.UUID(int=number + 1), uuid.uuid4(), f"clinic-{number}", "connected", number=PHONE
    )


def instance(one: Row, status: str = "open") -> Instance:
    return Instance(one.instance_name, status, "", phone=PHONE)


def known(one: Row, ago: float, state: str = "connected") -> Record:
    at = NOW - timedelta(seconds=ago)
    return Record(state, at, looks=9, connected_at=at, checked_at=at)


def taken(
    rows: list[Row], listed: list[Instance], records: dict[uuid.UUID, Record], turns: int = 3
) -> Selection:
    selection = Selection(NOW, 900.0, turns)
    named = {one.name: one for one in listed}
    for at in range(0, len(rows), 4):
        page = rows[at : at + 4]
        here = {r.instance_name: named[r.instance_name] for r in page if r.instance_name in named}
        selection.take(Snapshot(instances=here, rows=page), records)
    return selection


@pytest.mark.parametrize("listed", [0, 1, 1000, 20_000, 1_000_000])
@pytest.mark.parametrize("every", [10.0, 60.0, 900.0, 2 * DAY])
def test_each_has_its_turn_within_a_day(listed: int, every: float) -> None:
    rounds_a_day = max(1, int(DAY / every))
    assert in_turn(listed, every) * rounds_a_day >= listed
    assert in_turn(listed, every) >= 20


def test_those_that_were_not_asked_about_for_longest_have_their_turn_first() -> None:
    rows = [row(n) for n in range(12)]
    records = {one.id: known(one, ago=float(n * 7 % 12)) for n, one in enumerate(rows)}
    selection = taken(rows, [instance(one) for one in rows], records)
    longest = sorted(rows, key=lambda one: records[one.id].checked_at or NOW)[:3]
    assert [one.row for one in selection.well.in_order()] == longest
    assert selection.states == {"connected": 9}
    assert not selection.ill.in_order()


def test_missing_ones_are_asked_about_first_and_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ILL", 4)
    rows = [row(n) for n in range(10)]
    listed = [instance(one, "close") for one in rows[:8]]  # the last two are not in the list
    selection = taken(rows, listed, {one.id: known(one, 1.0) for one in rows})
    names = [one.row.instance_name for one in selection.asked()]
    assert names == ["clinic-8", "clinic-9", "clinic-0", "clinic-1"]
    assert (selection.should, selection.missing) == (10, 2)
    assert sum(selection.states.values()) == 6, "the others wait for the next round"


@pytest.mark.parametrize("missing_first", [True, False])
def test_however_many_are_missing_half_of_the_room_is_left_to_those_that_are_not(
    monkeypatch: pytest.MonkeyPatch, missing_first: bool
) -> None:
    monkeypatch.setattr(module, "ILL", 6)
    rows = [row(n) for n in range(20)]
    closed = rows[12:] if missing_first else rows[:8]
    records = {one.id: known(one, 1.0) for one in rows}
    selection = taken(rows, [instance(one, "close") for one in closed], records)
    asked = [one.instance is None for one in selection.asked()]
    assert asked == [True] * 3 + [False] * 3
    assert sum(selection.states.values()) == 14
    few = taken(rows, [instance(one, "close") for one in rows[:2]], records)
    asked = [one.instance is None for one in few.asked()]
    assert asked == [True] * 4 + [False] * 2, "what the others do not need is not wasted"


def test_what_was_never_seen_is_written_down_though_nobody_asks_about_it() -> None:
    rows = [row(n) for n in range(6)]
    selection = taken(rows, [instance(one) for one in rows], {})
    assert len(selection.well.in_order()) == 3
    assert len(selection.new) == 3


def test_a_list_that_lacks_many_is_not_believed_however_few_of_them_are_looked_at() -> None:
    """The rows beyond those that are looked at count as well."""
    few = [row(n) for n in range(5)]
    gone = {one.instance_name: "absent" for one in few}
    snapshot = Snapshot(rows=few).asked(gone)  # type: ignore[arg-type]
    assert implausibility(snapshot) is None, "each of them was asked about and is gone"
    sound = replace(snapshot, memory={}, beyond={"default": (1000, 0)})
    assert implausibility(sound) is None, "5 of 1005"
    broken = replace(snapshot, beyond={"default": (1000, 900)})
    said = implausibility(broken)
    assert said is not None
    assert said.startswith("905 of 1005 integrations")


def test_of_equals_the_first_are_kept() -> None:
    smallest: Smallest[str] = Smallest(2)
    assert [smallest.offer(1.0, one) for one in "abc"] == [None, None, "c"]
    assert smallest.offer(0.5, "d") == "b"
    assert smallest.in_order() == ["d", "a"]
    assert Smallest[str](0).offer(1.0, "a") == "a"
