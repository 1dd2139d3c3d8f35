"""What the dashboard draws, without a server: stretches of time, diagrams, and safe text."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from evosaga.events.model import (
    CompensationBegan,
    CompensationStarted,
    CompensationSucceeded,
    Recorded,
    SagaCancelRequested,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    SagaResumed,
    SagaStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from evosaga.orchestrator.api.pages.attempts import attempt_history
from evosaga.orchestrator.api.pages.diagram import diagram
from evosaga.orchestrator.api.pages.forms import safe_return
from evosaga.orchestrator.api.pages.rendering import HERE, render, shown
from evosaga.orchestrator.api.pages.saga_view import cancellable, cancellation
from evosaga.orchestrator.api.pages.time_axis import duration
from evosaga.orchestrator.api.pages.timeline import Timeline, timeline
from evosaga.orchestrator.engine.state import replay
from evosaga.orchestrator.queries.timeline import steps_of
from evosaga.sagas.definition import Saga
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION

BEGAN = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)
NAMES = [step.name for step in CREATE_INTEGRATION.steps]


def told(*events: tuple[float, SagaEvent], saga: Saga = CREATE_INTEGRATION) -> list[Recorded]:
    """A history: seconds since the beginning, and what happened then."""
    saga_id = uuid4()
    start = SagaStarted(
        saga=saga.name,
        version=saga.version,
        command=saga.command,
        command_id=str(saga_id),
        command_hash="0",
        business_key="key",
        input={},
    )
    return [
        Recorded(
            saga_id=saga_id,
            sequence=number,
            recorded_at=BEGAN + timedelta(seconds=at),
            correlation_id=str(saga_id),
            causation_id=None,
            event=event,
        )
        for number, (at, event) in enumerate([(0.0, start), *events])
    ]


def tried(step: str, worker: str = "w1", attempt: int = 1) -> StepStarted:
    return StepStarted(step=step, attempt=attempt, worker=worker, lease_seconds=1)


def did(step: str) -> StepSucceeded:
    return StepSucceeded(step=step, attempt=1)


def failed(step: str, outcome: Any, attempt: int = 1, code: str = "code") -> StepFailed:
    return StepFailed(step=step, attempt=attempt, outcome=outcome, code=code, message="it broke")


def drawn(
    history: list[Recorded],
    *,
    now: float | None = None,
    next_at: float | None = None,
) -> Timeline:
    """The timeline; with ``now``, in seconds, of a saga that is not over."""
    return timeline(
        attempt_history(history),
        steps_of(history, NAMES),
        {},
        now=BEGAN + timedelta(seconds=now or 0),
        over=now is None,
        next_at=BEGAN + timedelta(seconds=next_at) if next_at is not None else None,
    )


def bars(picture: Timeline, step: str) -> list[tuple[str, str, bool]]:
    row = next(row for row in picture.rows if row.story.name == step)
    return [(bar.shape, bar.ending, bar.backward) for bar in row.bars]


def test_every_step_is_a_row_in_the_order_of_the_definition() -> None:
    picture = drawn(told((0, tried("evolution")), (0.04, did("evolution"))), now=1)
    assert [row.story.name for row in picture.rows] == NAMES
    assert [row.state for row in picture.rows] == ["done", *["to come"] * 4]


def test_what_took_longer_is_wider_and_nothing_is_invisible() -> None:
    picture = drawn(
        told(
            (0, tried("evolution")),
            (0.04, did("evolution")),
            (0.04, tried("postgres")),
            (0.04, did("postgres")),
            (0.04, tried("cache")),
            (2.0, did("cache")),
            (2.0, SagaCompleted()),
        )
    )
    evolution, postgres, cache = (picture.rows[n].bars[0] for n in range(3))
    assert 0.5 <= postgres.width < evolution.width < cache.width
    assert evolution.x < postgres.x < cache.x
    assert cache.end == pytest.approx(100, abs=0.1)


def test_a_dependency_that_is_down_for_an_hour_is_one_hatched_stretch() -> None:
    held = [
        entry
        for n in range(120)
        for entry in (
            (30.0 * n, tried("evolution")),
            (30.0 * n + 0.01, failed("evolution", "held")),
        )
    ]
    history = told(*held, (3600.0, tried("evolution")), (3600.1, did("evolution")))
    picture = drawn(history, now=3601)
    assert bars(picture, "evolution") == [("wait", "held", False), ("attempt", "done", False)]
    wait, attempt = picture.rows[0].bars
    assert "120 times" in wait.said
    assert wait.end == pytest.approx(attempt.x, abs=0.1)


def test_a_retry_shows_its_attempts_and_the_waits_between() -> None:
    picture = drawn(
        told(
            (0, tried("evolution")),
            (0.1, failed("evolution", "unknown")),
            (1.1, tried("evolution", attempt=2)),
            (1.2, failed("evolution", "unknown", 2)),
        ),
        now=1.5,
        next_at=4.0,
    )
    assert bars(picture, "evolution") == [
        ("attempt", "unclear", False),
        ("wait", "unclear", False),
        ("attempt", "unclear", False),
        ("wait", "unclear", False),
    ]
    assert picture.now is not None
    assert picture.now < picture.rows[0].bars[-1].end == pytest.approx(100, abs=0.1)


def test_rolling_back_runs_upwards_and_is_told_apart() -> None:
    undo: list[tuple[float, SagaEvent]] = [
        (
            1.0,
            CompensationBegan(
                because="cancelled", code="cancelled", message="m", steps=("postgres", "evolution")
            ),
        ),
        (1.0, CompensationStarted(step="postgres", attempt=1, worker="w1", lease_seconds=1)),
        (1.0, CompensationSucceeded(step="postgres", attempt=1)),
        (1.0, CompensationStarted(step="evolution", attempt=1, worker="w1", lease_seconds=1)),
        (1.5, CompensationSucceeded(step="evolution", attempt=1)),
        (1.5, SagaCompensated(code="cancelled", message="m")),
    ]
    picture = drawn(
        told(
            (0, tried("evolution")),
            (0.1, did("evolution")),
            (0.1, tried("postgres")),
            (0.1, did("postgres")),
            (0.9, SagaCancelRequested(by="ana/1")),
            *undo,
        )
    )
    assert bars(picture, "evolution") == [("attempt", "done", False), ("attempt", "done", True)]
    back = picture.rows[0].bars[1]
    assert picture.rows[1].bars[1].x <= back.x
    assert [placed.mark.kind for placed in picture.marks] == ["cancel", "turn", "undone"]
    assert "Undoing" in back.said


def test_a_week_in_which_a_saga_was_parked_leaves_room_for_the_rest() -> None:
    week = 7 * 86400.0
    picture = drawn(
        told(
            (0, tried("evolution")),
            (0.1, failed("evolution", "unknown")),
            (0.1, SagaFailed(step="evolution", direction="forward", code="c", message="m")),
            (week, SagaResumed(by="ana/1", reason="it is back")),
            (week, tried("evolution")),
            (week + 0.1, did("evolution")),
        ),
        now=week + 0.2,
    )
    park, resume = picture.marks
    assert 10 < resume.x - park.x < 25
    assert resume.mark.reason == "it is back"


def test_a_takeover_shows_who_did_what() -> None:
    lost = StepFailed(
        step="evolution", attempt=1, outcome="unknown", code="worker_lost", message="w1 is gone"
    )
    picture = drawn(
        told(
            (0, tried("evolution", "w1")),
            (5, lost),
            (5, tried("evolution", "w2", 2)),
            (5.1, did("evolution")),
        ),
        now=6,
    )
    assert picture.workers == (("A", "w1"), ("B", "w2"))
    assert [(bar.worker, bar.ending) for bar in picture.rows[0].bars if bar.worker] == [
        ("A", "lost"),
        ("B", "done"),
    ]


@given(
    st.lists(st.floats(0, 1e7, allow_nan=False), min_size=1, max_size=40),
    st.sampled_from(["unknown", "held", "rejected"]),
)
def test_whatever_the_times_everything_lies_inside_the_picture(
    pauses: list[float], outcome: str
) -> None:
    at = 0.0
    events: list[tuple[float, SagaEvent]] = []
    for number, pause in enumerate(pauses):
        events += [
            (at, tried("cache", attempt=number + 1)),
            (at + pause / 2, failed("cache", outcome, number + 1)),
        ]
        at += pause
    picture = drawn(told(*events), now=at + 1, next_at=at + 3)
    for row in picture.rows:
        for bar in row.bars:
            assert 0 <= bar.x <= bar.end <= 101
        assert [bar.x for bar in row.bars] == sorted(bar.x for bar in row.bars)
    assert all(0 <= tick.x <= 100 for tick in picture.ticks)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 ms"),
        (0.0004, "0 ms"),
        (0.043, "43 ms"),
        (0.9999, "1.0 s"),
        (2.06, "2.1 s"),
        (9.99, "10 s"),
        (59.7, "1 min"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- definitions --------------------------------------------------------------------------------


def test_the_drawing_of_a_saga_says_where_no_way_back_is_left() -> None:
    made = diagram(CREATE_INTEGRATION)
    assert [box.name for box in made.undoable] == ["evolution", "postgres", "cache"]
    assert made.boxes[2].bottom < (made.no_return or 0) < made.boxes[3].y
    gone = diagram(DELETE_INTEGRATION)
    assert [box.name for box in gone.undoable] == ["mark"]
    assert gone.boxes[1].bottom < (gone.no_return or 0) < gone.boxes[2].y


def test_every_saga_of_this_release_can_be_drawn() -> None:
    for saga in discover().versions.values():
        made = diagram(saga)
        assert [box.name for box in made.boxes] == [step.name for step in saga.steps]
        assert all(box.does for box in made.boxes)


# --- what a cancel would do ---------------------------------------------------------------------


def test_a_cancel_names_what_it_would_undo_last_first() -> None:
    history = told((0, tried("evolution")), (0, did("evolution")), (0, tried("postgres")))
    plan = cancellation(CREATE_INTEGRATION, replay(r.event for r in history))
    assert plan.allowed
    assert plan.undo == ["postgres", "evolution"]
    assert "finished first" in plan.headline


def test_a_cancel_past_the_point_of_no_return_is_not_offered() -> None:
    steps: list[tuple[float, SagaEvent]] = []
    for name in NAMES[:3]:
        steps += [(0.0, tried(name)), (0.0, did(name))]
    state = replay(r.event for r in told(*steps, (0.0, tried("notify"))))
    assert not cancellable(CREATE_INTEGRATION, state)
    assert "no return" in cancellation(CREATE_INTEGRATION, state).headline


# --- hostile text -------------------------------------------------------------------------------


def test_text_that_would_turn_the_direction_of_writing_is_shown_as_what_it_is() -> None:
    assert shown("Clínica Sol 🌞") == "Clínica Sol 🌞"
    assert shown("a\u202etxt.exe") == "a\ufffdtxt.exe"
    assert shown("a\x1b[31m\u0000b") == "a\ufffd[31m\ufffdb"
    assert shown("two\nlines") == "two lines"


def test_templates_escape_and_only_markup_passes() -> None:
    class Problem:
        status, title, said = 404, "<b>", "<script>alert(1)</script>"

    told = render("problem.html", who=None, here="", csrf="", static="/s", problem=Problem())
    assert "<script>alert" not in told
    assert "&lt;script&gt;" in told
    assert shown(Markup("<b>")) == Markup("<b>")


def test_no_template_holds_a_script_a_style_or_a_handler_of_its_own() -> None:
    for template in (HERE / "templates").iterdir():
        text = template.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|\|safe|hx-on|hx-vals", text)
        scripts = re.findall(r"<script[^>]*>", text)
        assert all(" src=" in script for script in scripts), template.name


@pytest.mark.parametrize(
    "location",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/ui/\r\nSet-Cookie: a=b",
        "/ui/login?next=/ui/login",
        "/sagas",
        "",
        "/ui/ü",
    ],
)
def test_signing_in_leads_nowhere_but_to_a_page_of_ours(location: str) -> None:
    assert safe_return(location) == "/"


def test_signing_in_leads_back_to_where_one_was() -> None:
    assert safe_return("/ui/sagas?status=failed") == "/ui/sagas?status=failed"


# --- colours ------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_every_text_can_be_read_in_the_light_and_in_the_dark() -> None:
    css = (HERE / "static" / "dashboard.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
        for part in css.split("prefers-color-scheme: dark")[:2]
    )
    assert light.keys() == dark.keys()
    for palette in (light, dark):
        for text in ("ink", "muted", "go", "done", "undo", "bad", "hold", "none"):
            for ground in ("paper", "card"):
                assert _contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
        for text, ground in [
            ("ink", "go-soft"),
            ("ink", "bad-soft"),
            ("ink", "hold-soft"),
            ("ink", "undo-soft"),
            ("muted", "soft"),
            ("paper", "go"),
            ("paper", "bad"),
            ("muted", "bad-soft"),
        ]:
            assert _contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
