"""What is wrong now with the sagas, the workers and the streams.

``situation`` reads it in one query, bounded by what is open; the rest is pure and says it in words.
The whole list, the gravest first, is made where a domain's own problems are known, for WhatsApp in
``evosaga.orchestrator.whatsapp.attention``.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from evosaga import migrations
from evosaga.events import log_loss
from evosaga.events.clock import LIVING
from evosaga.events.database import Queryable
from evosaga.events.log_loss import LogLoss
from evosaga.events.relay import UNRELAYED
from evosaga.events.streams import EVENTS, Backlog

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
    """What Postgres knows. Of one organization only its own; then the rest is None."""

    parked: int = 0
    active: int = 0
    overdue: int = 0
    workers: int | None = None
    unrelayed: int | None = None
    revision: str | None = None
    went_back: str | None = None
    """What proves that the log has lost its end, as ``evosaga.events.log_loss`` keeps it."""


async def situation(pool: Queryable, organization_id: UUID | None = None) -> Situation:
    """How things are now. Raises what Postgres raises, without a schema too."""
    row = await pool.fetchrow(_PRESENT, organization_id)
    assert row is not None
    if organization_id is not None:  # how the house is doing is nobody else's business
        return Situation(row["parked"], row["active"], row["overdue"])
    return Situation(**dict(row))


def of_sagas(now: Situation) -> list[Problem]:
    """What keeps sagas from going on: the schema, the workers, and what waits for a person."""
    found = (_schema(now), _went_back(now), _workers(now), _parked(now), _overdue(now))
    return [one for one in found if one is not None]


def of_events(now: Situation) -> list[Problem]:
    """What is late to the stream of events."""
    found = _relay(now)
    return [] if found is None else [found]


def _schema(now: Situation) -> Problem | None:
    needed = migrations.head()
    if now.revision in (None, needed) or migrations.newer(now.revision, needed):
        return None
    said = f"the schema is {now.revision}, this release needs {needed}"
    kind = "the schema is old"
    return Problem("schema", kind, kind, said, "run: evosaga migrate", bad=True)


def _went_back(now: Situation) -> Problem | None:
    if now.went_back is None:
        return None
    kind = "the log went back"
    said = f"{kind}: {LogLoss.of(now.went_back)}"
    return Problem("log_went_back", kind, kind, said, log_loss.RECOVER, bad=True)


def _workers(now: Situation) -> Problem | None:
    if now.workers is None or now.workers > 0:
        return None
    kind = "no worker is alive"
    said = "no worker is alive, so commands wait"
    return Problem("workers", kind, kind, said, "start one: evosaga worker", bad=True)


def _parked(now: Situation) -> Problem | None:
    if not now.parked:
        return None
    brief = f"{counted(now.parked, 'saga')} {'needs' if now.parked == 1 else 'need'} attention"
    cure = "see: evosaga list --status failed; then: evosaga replay ID, or evosaga cancel ID"
    return Problem("parked", "sagas are parked", brief, f"{now.parked} parked", cure)


def _overdue(now: Situation) -> Problem | None:
    if not now.overdue or not now.workers:
        return None  # without a worker that is no news
    said = f"{counted(now.overdue, 'saga')} due that no worker has taken up"
    cure = "have the living workers room left, and the definition? evosaga why ID"
    return Problem("overdue", "sagas are overdue", f"{now.overdue} overdue", said, cure)


def of_commands(backlog: Backlog | None) -> list[Problem]:
    """What the stream of commands holds that it should not; nothing where it is not known."""
    if backlog is None:
        return []
    found = []
    if backlog.dead:
        brief = f"{counted(backlog.dead, 'dead letter')} {'waits' if backlog.dead == 1 else 'wait'}"
        said = f"{counted(backlog.dead, 'command')} that could not be processed"
        cure = "what and why: evosaga letters"
        found.append(Problem("dead_letters", "dead letters wait", brief, said, cure))
    behind = (backlog.lag or 0) + backlog.pending
    if behind > LATE:
        said = f"{backlog.lag} unread, {backlog.pending} being accepted"
        cure = "start more workers: evosaga worker"
        kind = "commands are late"
        found.append(Problem("commands", kind, f"{behind} commands wait", said, cure))
    return found


def _relay(now: Situation) -> Problem | None:
    behind = now.unrelayed or 0
    if not behind or (behind <= LATE and now.workers):
        return None
    said = f"{counted(behind, 'event')} not yet on the stream evosaga:events"
    cure = "a worker relays them; is one alive, and does Redis answer?"
    return Problem(
        "relay", "events are late", f"{counted(behind, 'event')} not published yet", said, cure
    )


def counted(number: int, thing: str) -> str:
    """The number and the thing, in the plural where there are several."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


_PRESENT: Final = f"""
SELECT count(*) FILTER (WHERE status = 'failed') AS parked,
       count(*) FILTER (WHERE status <> 'failed') AS active,
       count(*) FILTER (WHERE status <> 'failed' AND next_at < now() - interval '10 s') AS overdue,
       (SELECT count(*) FROM evosaga.workers WHERE {LIVING}) AS workers,
       {UNRELAYED} AS unrelayed,
       (SELECT version_num FROM evosaga.alembic_version LIMIT 1) AS revision,
       (SELECT to_jsonb(relay) -> 'went_back' FROM evosaga.relay
        WHERE stream = '{EVENTS}' AND to_jsonb(relay) ->> 'went_back' IS NOT NULL) AS went_back
FROM evosaga.open_sagas WHERE $1::uuid IS NULL OR organization_id = $1
"""  # noqa: S608  # constants only
