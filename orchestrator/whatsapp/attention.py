"""What is wrong now: one list, for the first page, the command line and the readiness check.

``situation`` reads what Postgres knows, bounded by what is open and by the number of integrations;
``problems`` is pure and says it in words, the gravest first. Phones and drifts are as the last run
of the jobs found them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from uuid import UUID

from evosaga.events.database import Queryable
from evosaga.events.streams import Backlog
from evosaga.orchestrator.queries import attention
from evosaga.orchestrator.queries.attention import Problem, counted
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, WELL


@dataclass(frozen=True, slots=True)
class Situation(attention.Situation):
    """What Postgres knows, of the integrations too.

    ``phones``: integrations that are not well, by how they are. ``asked``: drifts whose repair was
    asked for and that nobody has looked at since. ``chores``: those that could not be done to
    their end the last time, and why; of one organization alone none.
    """

    drifts: int = 0
    asked: int = 0
    phones: Mapping[str, int] = field(default_factory=dict)
    chores: Mapping[str, str] = field(default_factory=dict)


async def situation(pool: Queryable, organization_id: UUID | None = None) -> Situation:
    """How things are now. Raises what Postgres raises, without a schema too."""
    now = await attention.situation(pool, organization_id)
    drifts = await pool.fetchrow(_DRIFTS, organization_id)
    assert drifts is not None
    phones = await pool.fetch(_PHONES, organization_id, _LINKED)
    chores = await pool.fetch(_CHORES) if organization_id is None else ()
    return Situation(
        **asdict(now),
        **dict(drifts),
        phones={row["state"]: row["number"] for row in phones},
        chores={row["name"]: row["reason"] for row in chores},
    )


def problems(now: Situation, backlog: Backlog | None = None) -> list[Problem]:
    """What of it is wrong. ``backlog``: of the commands, where it is known."""
    return [
        *attention.of_sagas(now),
        *_phones(now),
        *attention.of_commands(backlog),
        *_drifts(now),
        *attention.of_events(now),
        *(_chore(name, reason) for name, reason in now.chores.items()),
    ]


def _phones(now: Situation) -> list[Problem]:
    if not now.phones:
        return []
    number = sum(now.phones.values())
    told = ", ".join(f"{count} {state}" for state, count in _most_first(now.phones))
    cures = {CURES.get(state) for state, _ in _most_first(now.phones)} - {None, ""}
    cure = next(iter(cures)) if len(cures) == 1 else "which, and what to do: evosaga health"
    verb = "is" if number == 1 else "are"
    brief = f"{counted(number, 'phone')} {verb} not connected"
    said = f"{counted(number, 'integration')} not connected: {told}"
    return [Problem("phones", "phones are not connected", brief, said, cure or "")]


def _drifts(now: Situation) -> list[Problem]:
    found = []
    if now.drifts:
        verb = "is" if now.drifts == 1 else "are"
        brief = f"{counted(now.drifts, 'drift')} {verb} known"
        said = f"{counted(now.drifts, 'thing')} not as the stores should have it"
        cure = "which and why: evosaga reconcile; mend what is safe: evosaga reconcile --fix"
        found.append(Problem("drift", "the stores have drifted", brief, said, cure))
    if now.asked:
        brief = f"{counted(now.asked, 'repair')} asked for"
        said = f"{brief}, and the stores were not compared since"
        cure = "look: evosaga reconcile"
        found.append(Problem("repairs", "repairs are under way", brief, said, cure))
    return found


def _chore(name: str, reason: str) -> Problem:
    kind = f"the job {name} did not finish"
    said = f"the last run of the job {name} did not finish: {reason}"
    return Problem("chores", "a background job did not finish", kind, said)


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def reason_of(result: Mapping[str, Any]) -> str | None:
    """Why a chore was not done to its end, out of what it left; None when it was."""
    said = result.get("aborted") or result.get("failed") or result.get("not_looked_at")
    return str(said) if said else None


_DRIFTS: Final = """
SELECT count(*) FILTER (WHERE looks > 0) AS drifts, count(*) FILTER (WHERE looks = 0) AS asked
FROM evosaga.sightings WHERE $1::uuid IS NULL OR organization_id = $1
"""
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
