"""What is wrong now, as conditions of alerts: the sagas, the workers, the streams and Redis."""

from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from evosaga.events import dead_letters, streams
from evosaga.events.alerts import Condition, Severity, parked_key
from evosaga.events.database import Queryable
from evosaga.events.redis_errors import cause
from evosaga.orchestrator.queries import attention
from evosaga.orchestrator.queries.attention import Problem, counted

REDIS: Final = ("dead_letters", "commands", "redis_full")
"""Codes that can't be looked into while Redis is away."""
CODES: Final = (
    *("schema", "log_went_back", "workers", "parked", "overdue", "relay", "chores", "redis_away"),
    *REDIS,
)
"""Every code of the conditions that are found here."""
_PATIENCE: Final = {"workers": 15.0, "schema": 30.0, "log_went_back": 0.0}
"""Seconds that a deploy or a restart may take without waking anybody."""
_LONG: Final = 60.0
_GRAVE: Final = ("workers", "schema", "log_went_back")
_FULL: Final = 0.9
_LETTERS: Final = 100
_IN_A_ROW: Final = 2


async def of_postgres(pool: Queryable) -> list[Condition]:
    """What the tables tell. Raises what Postgres raises."""
    now = await attention.situation(pool)
    found = [_condition(one) for one in (*attention.of_sagas(now), *attention.of_events(now))]
    found = [one for one in found if one.code != "parked"]  # which are grouped more finely
    found += [_parked(row) for row in await pool.fetch(_PARKED)]
    return found + [_chore(row) for row in await pool.fetch(_CHORES, _IN_A_ROW)]


async def of_redis(redis: Redis) -> tuple[list[Condition], list[str]]:
    """What the streams tell and how full Redis is; and the codes that could not be looked into."""
    try:
        backlog = await streams.backlog(redis)
        found = [_condition(one) for one in attention.of_commands(backlog)]
        found = [one for one in found if one.code != "dead_letters"]
        if backlog is not None and backlog.dead:
            found.append(await _letters(redis, backlog.dead))
    except (RedisError, OSError, TimeoutError) as trouble:
        cure = "look at the Redis server; commands over HTTP and sagas go on meanwhile"
        said = f"Redis can't be used: {cause(trouble)}"
        return [Condition("redis_away", "redis_away", said, cure, "critical", after=_LONG)], [
            *REDIS
        ]
    try:
        return [*found, *_full(await redis.info())], []
    except ResponseError:  # an access list that lets nobody ask
        return found, ["redis_full"]


def _condition(one: Problem) -> Condition:
    severity: Severity = "critical" if one.code in _GRAVE else "warning"
    after = _PATIENCE.get(one.code, _LONG)
    return Condition(one.code, one.code, one.said, one.cure, severity, after=after)


def _parked(row: Any) -> Condition:
    number, saga, code = row["number"], row["saga"], row["code"]
    verb = "is" if number == 1 else "are"
    return Condition(
        parked_key(saga, code),
        "parked",
        f"{counted(number, 'saga')} {saga} {verb} parked: {code or 'no reason'}",
        "see: evosaga why ID; then: evosaga replay ID, or evosaga cancel ID",
        reason=code,
        count=number,
        data={"saga": saga, "saga_ids": [str(id_) for id_ in row["saga_ids"]]},
    )


def _chore(row: Any) -> Condition:
    return Condition(
        f"chores/{row['name']}",
        "chores",
        f"the job {row['name']} could not be done to its end {row['times']} times in a row:"
        f" {row['reason']}",
        "mend what it names; it is tried again by itself",
        after=0.0,
        data={"job": row["name"]},
    )


async def _letters(redis: Redis, number: int) -> Condition:
    newest, _ = await dead_letters.newest(redis, _LETTERS)
    codes = sorted({letter.code for letter in newest if letter.code})
    verb = "waits" if number == 1 else "wait"
    return Condition(
        "dead_letters",
        "dead_letters",
        f"{counted(number, 'dead letter')} {verb}: {', '.join(codes)}",
        "what and why: evosaga letters",
        reason=newest[0].code if newest else None,
        count=number,
        data={"codes": codes},
    )


def _full(info: dict[str, Any]) -> list[Condition]:
    limit, used = info.get("maxmemory") or 0, info.get("used_memory") or 0
    said = ""
    if limit and used >= _FULL * limit:
        said = f"Redis has used {used * 100 // limit} % of its memory"
    elif "err" in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")):
        said = "Redis can't write to its disk"
    if not said:
        return []
    cure = "give it more room; what is on evosaga:events is kept for a week"
    return [Condition("redis_full", "redis_full", said, cure, "critical", after=_LONG)]


_PARKED: Final = """
SELECT saga, code, count(*) AS number, (array_agg(saga_id ORDER BY updated_at DESC))[:5] AS saga_ids
FROM evosaga.open_sagas WHERE status = 'failed' GROUP BY saga, code
"""
_CHORES: Final = """
SELECT name, (last_result ->> 'unfinished_in_a_row')::int AS times,
       coalesce(last_result ->> 'aborted', last_result ->> 'failed',
                last_result ->> 'not_looked_at', 'see the log') AS reason
FROM evosaga.chores WHERE (last_result ->> 'unfinished_in_a_row')::int >= $1
"""
