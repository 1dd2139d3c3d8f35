"""Sagas that wait for their turn: whose has come, and who is ahead of the others.

A saga that waits *behind* another holds ``{key}/behind/{its id}``. Its turn has come when all that
was ahead of it is over, and it has it once it has the key itself: the unique index lets one open
saga hold that, whatever another release thinks of queues. Until then its row has neither an owner
nor a time at which it is due, so that no worker takes it by mistake.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool, Queryable
from evosaga.events.statuses import ACTIVE_STATUSES, OPEN_STATUSES

WAITING: Final = "waiting"
"""The code of a saga that waits for its turn; older releases held its first step under it."""
PAGE: Final = 500
"""Waiting sagas that one sweep looks at: two milliseconds, however many wait."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """The open saga that another one waits for."""

    saga_id: UUID
    saga: str
    status: str
    step: str | None

    @property
    def parked(self) -> bool:
        return self.status == "failed"


@dataclass(frozen=True, slots=True)
class Turn:
    """``come``: it has its key. ``not yet``: ``ahead`` is still open. ``lost``: it is another
    worker's by now."""

    kind: Literal["come", "not yet", "lost"]
    ahead: Ahead | None = None


@dataclass(slots=True)
class Rotation:
    """How far a worker's sweeps have come with what waits; they begin anew at the end of it.

    ``ended``: sagas that this worker has seen end since its last sweep. Whoever is behind one of
    them is looked at at once. The rest is for what ended elsewhere: on a worker that died, say.
    """

    after: UUID | None = None
    ended: set[UUID] = field(default_factory=set)


def waits_for(saga_id: UUID) -> str:
    """The sentence of a saga that waits."""
    return f"waits for saga {saga_id} to be over"


async def take(pool: Pool, saga_id: UUID, owner: str) -> Turn:
    """Take its key for a saga that ``owner`` drives, if its turn has come and it has none yet."""
    try:
        row = await pool.fetchrow(_TAKE, saga_id, owner)
    except asyncpg.UniqueViolationError:  # somebody was faster, who is ahead from now on
        row = await pool.fetchrow(_TAKE, saga_id, owner)
    if row is None or row["owner"] != owner:
        return Turn("lost")
    if row["saga_id"] is None or row["has_key"]:
        return Turn("come")
    return Turn("not yet", Ahead(row["saga_id"], row["saga"], row["status"], row["step"]))


async def give_back(
    pool: Pool, saga_id: UUID, owner: str, message: str, due_by: float | None
) -> None:
    """Let it go on waiting; ``due_by``: seconds after its start at which it gives up."""
    await pool.execute(_GIVE_BACK, saga_id, owner, due_by, WAITING, message)


async def come(
    pool: Pool,
    owner: str,
    most: int,
    known: Sequence[tuple[str, int]],
    rotation: Rotation | None = None,
) -> list[asyncpg.Record]:
    """Take over the sagas whose turn may have come, and tell the others whom they wait for.

    Of a page of those that wait, and those behind what has ended.
    """
    rotation = rotation or Rotation()
    ended = list(rotation.ended)
    page = await pool.fetchrow(
        _PAGE, rotation.after, ended, [name for name, _ in known], [version for _, version in known]
    )
    assert page is not None
    rotation.after = page["last"]
    found = await _take_over(pool, owner, most, page["looked_at"]) if page["looked_at"] else []
    if len(found) < most:  # else there may be more behind these
        rotation.ended.difference_update(ended)
    return found


async def _take_over(
    pool: Pool, owner: str, most: int, looked_at: Collection[UUID]
) -> list[asyncpg.Record]:
    return await pool.fetch(_COME, owner, most, looked_at)


async def ahead_of(pool: Queryable, saga_id: UUID) -> UUID | None:
    """The open saga that this one waits for now; None: there is none."""
    found: UUID | None = await pool.fetchval(_AHEAD_OF, saga_id)
    return found


_WANTS: Final = (
    "CASE WHEN right(business_key, 44) = '/behind/' || saga_id "
    "THEN left(business_key, -44) ELSE business_key END"
)
# One that was called off while it waited leaves its place: then the one before it counts. A saga
# that has the key or the name without having looked at the queue is waited for as well.
_OPEN: Final = f"""
chain AS (
    SELECT me, behind AS at FROM waiting
    UNION
    SELECT chain.me, saga.behind FROM chain JOIN evosaga.sagas AS saga ON saga.saga_id = chain.at
    WHERE saga.status IN ('compensated', 'rejected') AND saga.behind IS NOT NULL
), ahead AS (
    SELECT me, at AS saga_id FROM chain
    UNION
    SELECT me, saga_id FROM waiting JOIN evosaga.sagas AS saga
        ON saga.business_key = waiting.wants AND saga.{OPEN_STATUSES}
    UNION
    SELECT me, saga_id FROM waiting JOIN evosaga.sagas AS saga
        ON saga.instance_name = waiting.instance_name AND saga.behind IS NULL
        AND saga.{OPEN_STATUSES}
), open AS (
    SELECT me, saga_id, saga, status, step, updated_at
    FROM ahead JOIN evosaga.sagas AS saga USING (saga_id)
    WHERE saga.{OPEN_STATUSES} AND saga_id <> me
)"""  # noqa: S608  # constants only
_ONE: Final = f"""
WITH RECURSIVE waiting AS (
    SELECT saga_id AS me, behind, instance_name, {_WANTS} AS wants
    FROM evosaga.sagas WHERE saga_id = $1
), {_OPEN}"""  # noqa: S608
_TAKE: Final = f"""{_ONE}, taken AS (
    UPDATE evosaga.sagas AS saga SET business_key = waiting.wants FROM waiting
    WHERE saga.saga_id = waiting.me AND saga.owner = $2 AND NOT EXISTS (SELECT FROM open)
)
SELECT mine.owner, right(mine.business_key, 44) <> '/behind/' || mine.saga_id AS has_key, ahead.*
FROM evosaga.sagas AS mine LEFT JOIN LATERAL (
    SELECT saga_id, saga, status, step FROM open ORDER BY status = 'failed' DESC LIMIT 1
) AS ahead ON true
WHERE mine.saga_id = $1
"""  # noqa: S608  # constants only
_AHEAD_OF: Final = f"""{_ONE}
SELECT saga_id FROM open ORDER BY status = 'failed' DESC LIMIT 1
"""  # noqa: S608
_GIVE_BACK: Final = f"""
UPDATE evosaga.sagas SET owner = NULL, next_at = created_at + make_interval(secs => $3),
    code = $4, message = $5, scheduled_at = now(), held_claim = NULL, holds = NULL,
    doubted_at = NULL
WHERE saga_id = $1 AND owner = $2 AND {ACTIVE_STATUSES}
"""  # noqa: S608
# While the one right before it is open and not parked, a saga is not looked at any further: that is
# nearly all that wait, and the chain of each costs much more than one look at a primary key.
# Whoever waits for one that is parked is looked at after that, and then again when it is over.
# Both are times at which transactions began, and one that began earlier may have committed later:
# so it is looked at for ten seconds more.
_MAY_COME: Final = f"""
{ACTIVE_STATUSES} AND owner IS NULL AND code = '{WAITING}' AND NOT EXISTS (
    SELECT FROM evosaga.sagas AS before
    WHERE before.saga_id = saga.behind AND before.{OPEN_STATUSES}
        AND (before.status <> 'failed'
            OR before.updated_at + interval '10 seconds' < saga.scheduled_at))
"""
# By ``one_saga_behind_another``. The page is cut before anything else is asked of its rows, so that
# its costs are bounded whatever these are.
_NEXT: Final = f"""
SELECT saga_id, behind, saga, version, status, owner, code, scheduled_at FROM evosaga.sagas
WHERE behind IS NOT NULL AND {OPEN_STATUSES}
"""  # noqa: S608
_PAGE: Final = f"""
WITH page AS (
    {_NEXT} AND behind > coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')
    ORDER BY behind LIMIT {PAGE}
), near AS (
    SELECT * FROM page UNION ALL {_NEXT} AND behind = ANY($2::uuid[])
)
SELECT (SELECT behind FROM page ORDER BY behind OFFSET {PAGE - 1} LIMIT 1) AS last,
    ARRAY(SELECT DISTINCT saga_id FROM near AS saga
          JOIN unnest($3::text[], $4::int[]) AS known (saga, version) USING (saga, version)
          WHERE {_MAY_COME}) AS looked_at
"""  # noqa: S608
_COME: Final = f"""
WITH RECURSIVE waiting AS (
    SELECT saga_id AS me, behind, instance_name, {_WANTS} AS wants, scheduled_at
    FROM evosaga.sagas AS saga WHERE saga_id = ANY($3) AND behind IS NOT NULL AND {_MAY_COME}
), {_OPEN}, told AS (
    UPDATE evosaga.sagas AS saga
    SET message = 'waits for saga ' || first.saga_id || ' to be over'
    FROM (SELECT DISTINCT ON (me) me, saga_id FROM open JOIN waiting USING (me)
          ORDER BY me, status = 'failed' DESC, saga_id = behind DESC, saga_id) AS first
    WHERE saga.saga_id = first.me AND saga.owner IS NULL
        AND saga.message <> 'waits for saga ' || first.saga_id || ' to be over'
), due AS (
    SELECT saga_id FROM evosaga.sagas JOIN waiting ON saga_id = me
    WHERE owner IS NULL AND {ACTIVE_STATUSES} AND NOT EXISTS (
        SELECT FROM open WHERE open.me = waiting.me
            AND (open.status <> 'failed'
                OR open.updated_at + interval '10 seconds' < waiting.scheduled_at))
    ORDER BY created_at LIMIT $2
    FOR UPDATE OF sagas SKIP LOCKED
)
UPDATE evosaga.sagas AS saga
SET owner = $1, next_at = now() + interval '60 seconds', scheduled_at = now()
FROM due WHERE saga.saga_id = due.saga_id
RETURNING saga.saga_id, saga.next_sequence, NULL::text AS was, now() AS now, false AS put_back,
    saga.held_claim, saga.holds, saga.doubted_at, saga.code, saga.message
"""  # noqa: S608
