"""When the first page knows of no problem: only when nothing is worth a second look."""

import uuid
from typing import Any

import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.api.pages import home_queries
from evosaga.orchestrator.api.pages.home import headline, needs, of_alerts
from evosaga.orchestrator.api.pages.home_queries import Server

FINE = [Server("Postgres", "ok", ""), Server("Evolution", "warn", "")]


async def saga(pool: Pool, **columns: Any) -> None:
    """A status row of a saga under way, as it is when nothing is wrong."""
    row: dict[str, Any] = {
        "saga": "create-integration",
        "status": "running",
        "step": "evolution",
        "attempt": 1,
        "code": None,
        "due": 60,
    } | columns
    await pool.execute(
        """
        INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,
            command_hash, correlation_id, next_sequence, step, attempt, code, next_at)
        VALUES ($1::text::uuid, $2, 1, $3, $1, $1, 'h', $1, 1, $4, $5, $6,
            now() + make_interval(secs => $7))
        """,
        str(uuid.uuid4()),
        row["saga"],
        row["status"],
        row["step"],
        row["attempt"],
        row["code"],
        float(row["due"]),
    )


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "1 active saga. No known problems."),
        ({"status": "compensating", "code": "rejected"}, "1 active saga. No known problems."),
        ({"saga": "watch-instance", "attempt": 3}, "1 active saga. No known problems."),
        ({"attempt": 4, "code": "timeout"}, "1 active saga: 1 retrying."),
        ({"status": "compensating", "attempt": 2}, "1 active saga: 1 retrying."),
        ({"code": "timeout"}, "1 active saga: 1 retrying."),
        ({"due": -60}, "1 active saga: 1 overdue."),
        ({"attempt": 2, "due": -60}, "1 active saga: 1 retrying, 1 overdue."),
        ({"status": "failed"}, "1 saga parked. No active sagas."),
    ],
)
async def test_calm_is_only_what_needs_no_second_look(
    pool: Pool, columns: dict[str, Any], said: str
) -> None:
    await saga(pool, **columns)
    assert headline(await home_queries.activity(pool, None, ["watch-instance"]), FINE) == said


async def test_a_saga_that_is_held_is_counted_once(pool: Pool) -> None:
    await saga(pool, code="evolution_unreachable", attempt=2)
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "SELECT saga_id, 0, 'step.failed', '{\"outcome\": \"held\"}', 'c' FROM evosaga.sagas"
    )
    work = await home_queries.activity(pool, None, ["watch-instance"])
    assert headline(work, FINE) == "1 active saga: 1 held."


async def test_a_server_that_is_away_is_no_calm(pool: Pool) -> None:
    away = [*FINE, Server("Redis", "bad", "no answer")]
    assert (
        headline(await home_queries.activity(pool, None, ["watch-instance"]), away)
        == "Trouble with Redis. No active sagas."
    )
    assert (
        headline(await home_queries.activity(pool, None, ["watch-instance"]), FINE)
        == "No active sagas. No known problems."
    )


def test_alerts_are_listed_once_and_not_beside_the_trouble_they_are_about() -> None:
    known = {"parked": 2, "phones": 1, "overdue": 1, "breaker": 1, "disk_full": 1}
    away = Server("Evolution berlin", "bad", "its breaker is open")
    [listed] = of_alerts(known, [*FINE, away])
    [_, need] = needs([away], [listed])
    assert (need.said, need.href) == ("1 alert firing: disk_full", "/ui/alerts")
    [listed] = of_alerts(known, FINE)
    assert listed.said == "2 alerts firing: breaker, disk_full"
    assert headline(None, [], [listed]).startswith("Postgres")
    assert of_alerts({"parked": 2}, FINE) == []
