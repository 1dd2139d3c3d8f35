"""The checks are checked: each finds what it is for, in evidence that is sound but for one thing.

A check that can't fail proves nothing. So the evidence of a small, healthy run is doctored the way
a broken product would have left it, and the law that speaks of it must notice.
"""

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.model import SagaStarted, StepFailed, StepStarted, StepSucceeded
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.evolution.journal import JournalEntry
from evosaga.sagas.whatsapp.ownership import KeyRing, fingerprint
from tests.conftest import SECRET
from tests.harness.chaos.checks.leaks import dumps, s17, secrets_of
from tests.harness.chaos.evidence import Evidence, Published, gather
from tests.harness.chaos.judge import check
from tests.harness.chaos.victim import impatient
from tests.support.driving import create, delete, nothing_pending, outcome, publish
from tests.support.waiting import eventually

Doctor: TypeAlias = "Callable[[Evidence], Evidence]"


async def test_the_checks_pass_what_is_sound_and_catch_every_mutant(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    sound = await healthy(settings, pool, redis, evolution)
    assert [str(violation) for violation in check(sound)] == []
    missed = {
        name: sorted({violation.law for violation in check(doctor(sound))})
        for name, (law, doctor) in MUTANTS.items()
        if law not in {violation.law for violation in check(doctor(sound))}
    }
    assert not missed, "these were not caught by the law that they break"


@pytest.mark.fault("s8")
async def test_what_is_in_memory_alone_may_go_with_the_global_key_if_it_is_ours(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    sound = await healthy(settings, pool, redis, evolution)
    ours = token_of(sound)
    half = heard(sound, applied="removed_from_database", token_hash=ours)
    assert not [v for v in check(removal(half, ours, "global")) if v.law == "S8"]
    whole_again = heard(half, applied="created", token_hash=ours)
    strangers = heard(sound, applied="half_created", token_hash="a-stranger", received_at=1.0)
    for evidence, token in ((whole_again, ours), (strangers, "a-stranger")):
        assert [v for v in check(removal(evidence, token, "global")) if v.law == "S8"]


@pytest.mark.fault("s17")
async def test_a_secret_is_found_in_every_disguise_and_wherever_it_lies(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    sound = await healthy(settings, pool, redis, evolution)
    texts = await dumps(pool, redis, {"log of worker 0": "all is well"})
    token = sound.keys.instance_token(maker(sound), sound.keys.current)
    secrets = secrets_of(sound, sound.keys, {'a "canary"/+key': "the key", SECRET: "the secret"})
    assert secrets[token] == "an instance token"
    assert not list(s17(replace(sound, texts=texts), secrets))
    for secret in ('a "canary"/+key', SECRET, token):
        for disguised in (
            f"apikey: {secret}",
            quote(secret, safe=""),
            json.dumps({"deep": json.dumps(secret)}),
            base64.b64encode(b"x" + secret.encode() + b" and more than forty letters").decode(),
            base64.urlsafe_b64encode(b'{"k":"' + secret.encode() + b'"}' + bytes(24)).decode(),
        ):
            leaky = replace(sound, texts={**texts, "log of worker 0": f"oh: {disguised}"})
            assert [v.about for v in s17(leaky, secrets)] == ["log of worker 0"], disguised
    assert set(texts) >= {"table evosaga.saga_events", "redis evosaga:events", "redis routing keys"}


async def healthy(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> Evidence:
    """Creates, a delete, one that is rolled back, one that is refused, a duplicate, and poison."""
    evolution.foreign("a-strangers-instance")
    commands = [create(), create(), create(), create()]
    commands.append(create(organization_id=commands[0]["data"]["organization_id"]))
    await redis.rpush(f"evosaga:removed:wa-{commands[3]['id']}", "not a string")
    async with running_worker(settings, impatient()):
        for command in commands[:4]:
            await publish(redis, command)
        for command in commands[:4]:
            await outcome(pool, command["id"])
        commands.append(delete(f"wa-{commands[1]['id']}"))
        for command in (*commands[4:], commands[0]):
            await publish(redis, command)
        await redis.xadd(streams.COMMANDS, {streams.FIELD: b"poison"})
        for command in commands[4:]:
            await outcome(pool, command["id"])
        await eventually(lambda: nothing_pending(redis))
        await eventually(lambda: _told(pool))
    kinds = {"integration.create": "create", "integration.delete": "delete"}
    published = [
        Published(command["id"], kinds[command["type"]], _body(command), 0.0)
        for command in commands
    ]
    return await gather(
        pool,
        redis,
        KeyRing([SECRET]),
        evolution.journal,
        {name: asdict(view) for name, view in evolution.live().items()},
        {name: asdict(view) for name, view in evolution.rows().items()},
        published=[*published, Published("poison", "poison", b"poison", 0.0)],
        registry=impatient(),
    )


async def _told(pool: Pool) -> bool:
    return bool(
        await pool.fetchval(
            "SELECT (SELECT position FROM evosaga.relay WHERE stream = 'evosaga:events') "
            "= max(position) FROM evosaga.saga_events"
        )
    )


def _body(command: Mapping[str, Any]) -> bytes:
    return json.dumps(command, ensure_ascii=False, separators=(",", ":")).encode()


# -- where in the evidence a mutation is made


def maker(e: Evidence) -> uuid.UUID:
    """The create of an integration that is there."""
    return min(e.integrations)


def of(e: Evidence, status: str) -> uuid.UUID:
    """A saga that has this status."""
    return min(saga_id for saga_id, row in e.sagas.items() if row["status"] == status)


def name_of(e: Evidence) -> str:
    return str(e.instance(maker(e)))


def token_of(e: Evidence) -> str:
    return fingerprint(e.keys.instance_token(maker(e), e.keys.current))


def retold(e: Evidence, saga_id: uuid.UUID, change: Callable[[list[Any]], list[Any]]) -> Evidence:
    """The same evidence with another history of one saga."""
    return replace(e, histories={**e.histories, saga_id: change(list(e.histories[saga_id]))})


def with_event(e: Evidence, saga_id: uuid.UUID, at: int, **changes: Any) -> Evidence:
    """The same evidence with one event changed."""
    recorded = e.histories[saga_id][at]
    event = recorded.event.model_copy(update=changes)
    told = recorded.model_copy(update={"event": event})
    return retold(e, saga_id, lambda h: [*h[:at], told, *h[at + 1 :]])


def with_row(e: Evidence, saga_id: uuid.UUID, **changes: Any) -> Evidence:
    """The same evidence with another status row."""
    return replace(e, sagas={**e.sagas, saga_id: {**e.sagas[saga_id], **changes}})


def heard(e: Evidence, **entry: Any) -> Evidence:
    """The same evidence with one more line in Evolution's journal."""
    given = {"sequence": 10**6, "kind": "applied", "received_at": 2e9, "name": name_of(e)}
    return replace(e, journal=[*e.journal, JournalEntry(**{**given, **entry})])


def removal(e: Evidence, token: str, key_kind: str) -> Evidence:
    """The same evidence with a delete that took something away."""
    asked = heard(
        e, sequence=10**6, kind="request", operation="delete", path="/", key_kind=key_kind
    )
    return heard(asked, sequence=10**6 + 1, applied="removed", token_hash=token, caused_by=10**6)


def without(table: Mapping[Any, Any], key: Any) -> dict[Any, Any]:
    return {k: v for k, v in table.items() if k != key}


def place(e: Evidence, saga_id: uuid.UUID, kind: type[Any], step: str) -> int:
    """Where in a history an event of this kind stands."""
    return next(
        n
        for n, r in enumerate(e.histories[saga_id])
        if isinstance(r.event, kind) and r.event.step == step
    )


def _undone_in_part(e: Evidence) -> Evidence:
    rolled_back = of(e, "compensated")
    return retold(
        e,
        rolled_back,
        lambda h: [
            r
            for r in h
            if not (r.event.type == "compensation.succeeded" and r.event.step == "evolution")
        ],
    )


def _two_endings(e: Evidence) -> Evidence:
    def twice(history: list[Any]) -> list[Any]:
        return [*history, history[-1].model_copy(update={"sequence": len(history)})]

    return retold(e, maker(e), twice)


def _told_in_other_words(e: Evidence) -> Evidence:
    stream_id, fields = e.events[0]
    body = json.loads(fields["data"])
    changed = {"data": json.dumps({**body, "time": "1970-01-01T00:00:00Z"}).encode()}
    return replace(e, events=[*e.events, (stream_id, changed)])


def _told_out_of_order(e: Evidence) -> Evidence:
    mine = [entry for entry in e.events if str(maker(e)).encode() in entry[1]["data"]]
    others = [entry for entry in e.events if entry not in mine]
    return replace(e, events=[*others, *reversed(mine)])


def _made_before_it_was(e: Evidence) -> Evidence:
    journal = [entry for entry in e.journal if entry.name != name_of(e) or not entry.applied]
    return replace(e, journal=journal)


def _too_many_attempts(e: Evidence) -> Evidence:
    at = place(e, maker(e), StepStarted, "evolution")
    return with_event(e, maker(e), at, attempt=99)


def _two_of_one_birthmark(e: Evidence) -> Evidence:
    return replace(e, live={**e.live, "twin": {**e.live[name_of(e)], "name": "twin"}})


def _creates_without_end(e: Evidence) -> Evidence:
    for _ in range(10):
        e = heard(e, kind="request", operation="create")
    return e


def _key(e: Evidence, name: str, ttl: int = 1000, **changes: Any) -> Evidence:
    value = {**json.loads(e.cache[name_of(e)][0]), **changes}
    return replace(e, cache={**e.cache, name: (json.dumps(value).encode(), ttl)})


def _succeeded_twice(e: Evidence) -> Evidence:
    at = place(e, maker(e), StepSucceeded, "evolution")
    return retold(e, maker(e), lambda h: [*h[: at + 1], h[at], *h[at + 1 :]])


def _gone_on_after_failing(e: Evidence) -> Evidence:
    at = place(e, of(e, "compensated"), StepFailed, "cache")
    return retold(e, of(e, "compensated"), lambda h: [*h[:at], *h[at + 1 :]])


def _other_organization(e: Evidence) -> Evidence:
    row = {**e.integrations[maker(e)], "organization_id": uuid.uuid4()}
    return replace(e, integrations={**e.integrations, maker(e): row})


def _started_anew(e: Evidence) -> Evidence:
    first = e.histories[maker(e)][0].event
    assert isinstance(first, SagaStarted)
    return with_event(e, maker(e), 0, command_hash="another")


def _row(e: Evidence, **changes: Any) -> Evidence:
    row = {**e.integrations[maker(e)], **changes}
    return replace(e, integrations={**e.integrations, maker(e): row})


def _second_holder(e: Evidence) -> Evidence:
    one, two = sorted(e.integrations)[:2]
    key = e.sagas[one]["business_key"]
    return with_row(
        with_row(e, one, status="running", next_at=1),
        two, status="running", business_key=key, next_at=1,
    )  # fmt: skip


_LOST: Final = b'{"id":"lost","type":"integration.create","data":{}}'

MUTANTS: Final[dict[str, tuple[str, Doctor]]] = {
    "an event is gone": ("S1", lambda e: retold(e, maker(e), lambda h: [*h[:2], *h[3:]])),
    "a history without a status row": (
        "S1", lambda e: replace(e, sagas=without(e.sagas, maker(e)))
    ),
    "no version check: two workers drove it": ("S1", _succeeded_twice),
    "history changed while it ran": (
        "S1", lambda e: replace(e, snapshots=["saga 1: event 2 is not what it was"])
    ),
    "it turned round without a failure": ("S2", _gone_on_after_failing),
    "the status row tells another story": (
        "S2", lambda e: with_row(e, maker(e), status="compensated")
    ),
    "another body than was published": ("S3", _started_anew),
    "one command, two sagas": (
        "S3",
        lambda e: with_row(e, maker(e), command_id=e.sagas[of(e, "rejected")]["command_id"]),
    ),
    "a saga ended twice": ("S4", _two_endings),
    "a create that nobody meant": (
        "S5", lambda e: heard(e, kind="request", operation="create", name="wa-unheard-of")
    ),
    "timeout = failed: the create was made twice": (
        "S6", lambda e: heard(e, applied="created", token_hash=token_of(e))
    ),
    "two instances with one birthmark": ("S6", _two_of_one_birthmark),
    "a step succeeded twice in one run": ("S7", _succeeded_twice),
    "retry without budget": ("S7", _too_many_attempts),
    "a stranger's instance was removed": ("S8", lambda e: removal(e, "a-stranger", "instance")),
    "deleted with the global key": ("S8", lambda e: removal(e, token_of(e), "global")),
    "403 = success: it was never made": ("S9", _made_before_it_was),
    "a row that no saga made": (
        "S10",
        lambda e: replace(
            e, integrations={**e.integrations, uuid.uuid4(): e.integrations[maker(e)]}
        ),
    ),
    "a completed create without its row": (
        "S10", lambda e: replace(e, integrations=without(e.integrations, maker(e)))
    ),
    "a row of another organization": ("S10", _other_organization),
    "row and log disagree in one snapshot": (
        "S11", lambda e: replace(e, snapshots=["saga 1: a row, against its log, in one snapshot"])
    ),
    "unfenced cache: a key without an integration": ("S12", lambda e: _key(e, "wa-long-gone")),
    "a key that lives for ever": ("S12", lambda e: _key(e, name_of(e), ttl=-1)),
    "a key of another organization": (
        "S12", lambda e: _key(e, name_of(e), organization_id=str(uuid.uuid4()))
    ),
    "rolled back, and one step was not undone": ("S13", _undone_in_part),
    "its status row names another organization": (
        "S14", lambda e: with_row(e, maker(e), organization_id=uuid.uuid4())
    ),
    "two open sagas hold one key": ("S14", _second_holder),
    "acknowledged before the commit": (
        "S15", lambda e: replace(e, commands=[*e.commands, ("9-9", {"data": b'{"id":"lost"}'})])
    ),
    "naive relay: an event was never told": (
        "S16", lambda e: replace(e, events=e.events[:-1])
    ),
    "an event was repeated in other words": ("S16", _told_in_other_words),
    "events out of order": ("S16", _told_out_of_order),
    "a saga changed its definition": ("S18", lambda e: with_row(e, maker(e), version=99)),
    "more creates than attempts": ("S19", _creates_without_end),
    "group at $: a command was never read": (
        "L1",
        lambda e: replace(e, published=[*e.published, Published("lost", "create", _LOST, 1.0)]),
    ),
    "a saga that nobody drives": ("L2", lambda e: with_row(e, maker(e), status="running")),
    "no watch: an orphan": (
        "L3", lambda e: replace(e, integrations=without(e.integrations, maker(e)))
    ),
    "a connection that nobody noticed": (
        "S20",
        lambda e: replace(
            _row(e, status="connected"),
            live={**e.live, name_of(e): {**e.live[name_of(e)], "state": "close"}},
            reconciled=True,
        ),
    ),
    "a row without an instance": ("L4", lambda e: replace(e, live=without(e.live, name_of(e)))),
    "a stranger where our instance was": (
        "L4",
        lambda e: replace(
            e, rows={**e.rows, name_of(e): {**e.rows[name_of(e)], "token_hash": "a-stranger"}}
        ),
    ),
    "an instance without its settings": (
        "L4",
        lambda e: replace(
            e, rows={**e.rows, name_of(e): {**e.rows[name_of(e)], "settings": False}}
        ),
    ),
    "a row that is deleting for ever": ("L4", lambda e: _row(e, status="deleting")),
    "a message is pending": ("L5", lambda e: replace(e, group={"pending": 1, "lag": 0})),
    "the relay is behind": ("L5", lambda e: replace(e, cursor=e.cursor - 1)),
    "a good command was dead-lettered": (
        "L5",
        lambda e: replace(e, dead=[*e.dead, ("9-9", {"data": e.published[0].body})]),
    ),
    "an ended saga has an owner": ("L6", lambda e: with_row(e, maker(e), owner="somebody")),
    "a transaction was left open": ("L7", lambda e: replace(e, database={"stuck": 1})),
    "a routing key is missing": ("L8", lambda e: replace(e, cache=without(e.cache, name_of(e)))),
    "a saga that no replay can free": ("L9", lambda e: with_row(e, maker(e), status="failed")),
}  # fmt: skip
