"""What is wrong now: one list, for the first page, the command line and the readiness check.

``situation`` reads what Postgres knows in one query, bounded by what is open and by the number of
integrations; ``problems`` is pure and says it in words, the gravest first. Phones and drifts are as
the last look of the chores found them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from evosaga import migrations
from evosaga.events.clock import LIVING
from evosaga.events.database import Queryable
from evosaga.events.streams import Backlog
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, WELL

LATE: Final = 1000
"""So many events or commands behind is worth a word."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``brief`` fits into a headline; ``said`` tells more of it.

    ``bad``: nothing goes on because of it. ``kind`` says without any number what it is.
    """

    code: str
    kind: str
    brief: str
    said: str
    cure: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What Postgres knows. Of one organization only its own; then the rest is None or empty.

    ``phones``: integrations that are not well, by how they are. ``asked``: drifts whose repair was
    asked for and that nobody has looked at since. ``chores``: those that could not be done to
    their end the last time, and why.
    """

    parked: int = 0
    active: int = 0
    overdue: int = 0
    drifts: int = 0
    asked: int = 0
    phones: Mapping[str, int] = field(default_factory=dict)
    workers: int | None = None
    unrelayed: int | None = None
    revision: str | None = None
    chores: Mapping[str, str] = field(default_factory=dict)


async def situation(pool: Queryable, organization_id: UUID | None = None) -> Situation:
    """How things are now. Raises what Postgres raises, without a schema too."""
    row = await pool.fetchrow(_PRESENT, organization_id)
    assert row is not None
    phones = {r["state"]: r["number"] for r in await pool.fetch(_PHONES, organization_id, _LINKED)}
    if organization_id is not None:  # how the house is doing is nobody else's business
        return Situation(
            row["parked"], row["active"], row["overdue"], row["drifts"], row["asked"], phones
        )
    chores = {r["name"]: r["reason"] for r in await pool.fetch(_CHORES)}
    return Situation(**dict(row), phones=phones, chores=chores)


def problems(now: Situation, backlog: Backlog | None = None) -> list[Problem]:
    """What of it is wrong. ``backlog``: of the commands, where it is known."""
    found = [
        _schema(now),
        _workers(now),
        _parked(now),
        _overdue(now),
        *_phones(now),
        *_letters(backlog),
        *_drifts(now),
        _relay(now),
        *(_chore(name, reason) for name, reason in now.chores.items()),
    ]
    return [one for one in found if one is not None]


def _schema(now: Situation) -> Problem | None:
    needed = migrations.head()
    if now.revision in (None, needed) or migrations.newer(now.revision, needed):
        return None
    said = f"the schema is {now.revision}, this release needs {needed}"
    kind = "the schema is old"
    return Problem("schema", kind, kind, said, "run: evosaga migrate", bad=True)


def _workers(now: Situation) -> Problem | None:
    if now.workers is None or now.workers > 0:
        return None
    kind = "no worker is alive"
    said = "none alive, so commands wait"
    return Problem("workers", kind, kind, said, "start one: evosaga worker", bad=True)


def _parked(now: Situation) -> Problem | None:
    if not now.parked:
        return None
    brief = f"{_some(now.parked, 'saga')} {'needs' if now.parked == 1 else 'need'} a person"
    cure = "see: evosaga list --status failed; then: evosaga replay ID, or evosaga cancel ID"
    return Problem("parked", "sagas are parked", brief, f"{now.parked} parked", cure)


def _overdue(now: Situation) -> Problem | None:
    if not now.overdue or not now.workers:
        return None  # without a worker that is no news
    said = f"{_some(now.overdue, 'saga')} due that no worker has taken up"
    cure = "have the living workers room left, and the definition? evosaga why ID"
    return Problem("overdue", "sagas are overdue", f"{now.overdue} overdue", said, cure)


def _phones(now: Situation) -> list[Problem]:
    if not now.phones:
        return []
    number = sum(now.phones.values())
    told = ", ".join(f"{count} {state}" for state, count in _most_first(now.phones))
    cures = {CURES.get(state) for state, _ in _most_first(now.phones)} - {None, ""}
    cure = next(iter(cures)) if len(cures) == 1 else "which, and what to do: evosaga health"
    verb = "is" if number == 1 else "are"
    brief = f"{_some(number, 'phone')} {verb} not connected"
    said = f"{_some(number, 'integration')} not connected: {told}"
    return [Problem("phones", "phones are not connected", brief, said, cure or "")]


def _letters(backlog: Backlog | None) -> list[Problem]:
    if backlog is None:
        return []
    found = []
    if backlog.dead:
        brief = f"{_some(backlog.dead, 'dead letter')} {'waits' if backlog.dead == 1 else 'wait'}"
        said = f"{_some(backlog.dead, 'command')} that nobody could obey"
        cure = "what and why: evosaga letters"
        found.append(Problem("dead_letters", "dead letters wait", brief, said, cure))
    behind = (backlog.lag or 0) + backlog.pending
    if behind > LATE:
        said = f"{backlog.lag} unread, {backlog.pending} being accepted"
        cure = "start more workers: evosaga worker"
        kind = "commands are late"
        found.append(Problem("commands", kind, f"{behind} commands wait", said, cure))
    return found


def _drifts(now: Situation) -> list[Problem]:
    found = []
    if now.drifts:
        verb = "is" if now.drifts == 1 else "are"
        brief = f"{_some(now.drifts, 'drift')} {verb} known"
        said = f"{_some(now.drifts, 'thing')} not as the stores should have it"
        cure = "which and why: evosaga reconcile; mend what is safe: evosaga reconcile --fix"
        found.append(Problem("drift", "the stores have drifted", brief, said, cure))
    if now.asked:
        brief = f"{_some(now.asked, 'repair')} asked for"
        said = f"{brief}, and nobody has looked since"
        cure = "look: evosaga reconcile"
        found.append(Problem("repairs", "repairs are under way", brief, said, cure))
    return found


def _relay(now: Situation) -> Problem | None:
    behind = now.unrelayed or 0
    if not behind or (behind <= LATE and now.workers):
        return None
    said = f"{_some(behind, 'event')} not yet on the stream evosaga:events"
    cure = "a worker relays them; is one alive, and is Redis well?"
    return Problem("relay", "events are late", f"{_some(behind, 'event')} not told yet", said, cure)


def _chore(name: str, reason: str) -> Problem:
    kind = f"the last {name} was not done to its end"
    said = f"the last {name} could not be done to its end: {reason}"
    return Problem("chores", "a chore was not done to its end", kind, said)


def _some(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def reason_of(result: Mapping[str, Any]) -> str | None:
    """Why a chore was not done to its end, out of what it left; None when it was."""
    said = result.get("aborted") or result.get("failed") or result.get("not_looked_at")
    return str(said) if said else None


# The newest position is an upper bound: rolled back transactions leave gaps.
_PRESENT: Final = f"""
SELECT count(*) FILTER (WHERE status = 'failed') AS parked,
       count(*) FILTER (WHERE status <> 'failed') AS active,
       count(*) FILTER (WHERE status <> 'failed' AND next_at < now() - interval '10 s') AS overdue,
       (SELECT count(*) FROM evosaga.sightings
        WHERE looks > 0 AND ($1::uuid IS NULL OR organization_id = $1)) AS drifts,
       (SELECT count(*) FROM evosaga.sightings
        WHERE looks = 0 AND ($1::uuid IS NULL OR organization_id = $1)) AS asked,
       (SELECT count(*) FROM evosaga.workers WHERE {LIVING}) AS workers,
       greatest(0, coalesce((SELECT max(position) FROM evosaga.saga_events), 0)
           - coalesce((SELECT position FROM evosaga.relay WHERE stream = 'evosaga:events'), 0))
           AS unrelayed,
       (SELECT version_num FROM evosaga.alembic_version LIMIT 1) AS revision
FROM evosaga.sagas
WHERE status IN ('running', 'compensating', 'failed')
  AND ($1::uuid IS NULL OR organization_id = $1)
"""  # noqa: S608  # constants only
# Whom no check has seen yet is as its row says.
_LINKED: Final = (*WELL, "incomplete")
"""States in which nothing is wrong with the phone; what an incomplete one lacks is a drift."""
_PHONES: Final = """
SELECT coalesce(seen.state, row.status::text) AS state, count(*) AS number
FROM healthcare.integrations AS row
LEFT JOIN evosaga.connections AS seen ON seen.integration_id = row.id
WHERE row.type = 'whatsapp' AND row.provider = 'evolution' AND row.enabled
  AND row.status::text <> 'deleting' AND NOT coalesce(seen.state, row.status::text) = ANY($2)
  AND ($1::uuid IS NULL OR row.organization_id = $1)
GROUP BY 1
"""
_CHORES: Final = """
SELECT name, coalesce(last_result ->> 'aborted', last_result ->> 'failed',
                      last_result ->> 'not_looked_at') AS reason
FROM evosaga.chores
WHERE coalesce(last_result ->> 'aborted', last_result ->> 'failed',
               last_result ->> 'not_looked_at') IS NOT NULL
ORDER BY name
"""
