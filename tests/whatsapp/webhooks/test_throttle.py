"""How often an integration is looked at: pure, on a clock of the test's own."""

from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from evosaga.orchestrator.whatsapp.integrations.connection import ConnectionObservation
from evosaga.orchestrator.whatsapp.webhooks.payloads import MergedHint
from evosaga.orchestrator.whatsapp.webhooks.throttle import SELDOMEST, SOONEST, Throttle, again_in

AT = datetime(2026, 1, 1)
PAIRED = ConnectionObservation("open", "5511999990000", recorded=True)


def heard(state: Any) -> MergedHint:
    return MergedHint(AT, state)


def test_the_first_hint_is_looked_at_at_once() -> None:
    assert Throttle().wait(heard("connecting"), 100.0) == 0


def test_a_storm_of_the_same_is_looked_at_ever_more_seldom() -> None:
    pace, now, looks = Throttle(), 0.0, []
    while now < 600:  # a hint at every moment
        now += pace.wait(heard("connecting"), now)
        looks.append(now)
        pace.at, pace.state, pace.idle = now, "connecting", pace.idle + 1
        now += 0.001
    assert len([at for at in looks if at < 9]) <= 6
    gaps = [later - sooner for sooner, later in pairwise(looks)]
    assert max(gaps) <= SELDOMEST + 0.01
    assert len(looks) <= 20


@pytest.mark.parametrize("state", ["open", "close", "refused"])
def test_what_may_have_changed_is_looked_at_at_once_in_the_middle_of_a_storm(state: str) -> None:
    pace = Throttle(at=100.0, idle=10, state="connecting")
    assert pace.wait(heard("connecting"), 101.0) > 50
    assert pace.wait(heard(state), 101.0) == 0
    assert pace.wait(heard(state), 100.0) == SOONEST


def test_what_was_seen_already_is_no_news() -> None:
    assert Throttle(at=100.0, idle=10, state="close").wait(heard("refused"), 101.0) > 50
    assert Throttle(at=100.0, idle=0, state="open").wait(heard("open"), 100.1) > 0


@pytest.mark.parametrize(
    ("said", "state", "seen", "again"),
    [
        ("changed", "open", PAIRED, False),
        ("same", "open", PAIRED, False),
        ("lost", "close", ConnectionObservation("close"), True),
        (
            "same",
            "open",
            ConnectionObservation("open"),
            True,
        ),  # its database does not know the phone yet
        ("same", "open", ConnectionObservation("connecting"), True),
        ("same", "open", ConnectionObservation("close"), False),
        ("same", "open", ConnectionObservation("absent"), False),
        ("same", "close", ConnectionObservation("connecting"), False),
        ("same", "connecting", ConnectionObservation("connecting"), False),
        ("same", "close", ConnectionObservation("unknown"), True),
    ],
)
def test_a_look_that_settled_nothing_is_repeated(
    said: str, state: str, seen: ConnectionObservation, again: bool
) -> None:
    assert (again_in(said, heard(state), seen, "WHATSAPP-BAILEYS", 0) is not None) == again


def test_it_is_repeated_soon_then_later_and_not_for_ever() -> None:
    waits = [
        again_in("same", heard("open"), ConnectionObservation("open"), "WHATSAPP-BAILEYS", n)
        for n in range(9)
    ]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, None, None, None]


def test_an_evolution_that_says_nothing_is_asked_until_it_does() -> None:
    waits = [
        again_in("same", heard("close"), ConnectionObservation("unknown"), "WHATSAPP-BAILEYS", n)
        for n in (0, 1, 5, 50)
    ]
    assert waits == [0.25, 0.5, 8.0, SELDOMEST]
