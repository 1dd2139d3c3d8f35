"""What must hold of the log and the three stores together: S5, S6, S8-S10, S12, S19, S20."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

from evosaga.events.model import CompensationStarted, StepStarted, StepSucceeded
from evosaga.sagas.whatsapp.evolution.partial import PATIENCE
from tests.harness.chaos.checks.histories import Check, of_saga
from tests.harness.chaos.evidence import CREATED, REMOVED, RESTORED, Evidence, Violation

_SLACK: Final = 0.05
"""Seconds by which two programs that read one clock may differ."""
_LONGEST_TTL: Final = 3_600_000


def s5(e: Evidence) -> Iterator[Violation]:
    """S5 Every create and delete that Evolution received was meant: its intent is older."""
    intents = _intents(e)
    for entry in e.journal:
        if entry.kind != "request" or entry.operation not in ("create", "delete"):
            continue
        since = intents.get(entry.name or "")
        if since is None or since > entry.received_at + _SLACK:
            yield Violation("S5", f"instance {entry.name}", f"a {entry.operation} without intent")


def s6(e: Evidence) -> Iterator[Violation]:
    """S6 A birthmark is made once: creates <= 1 + removals, and it lives at most once."""
    created: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for entry in e.journal:
        if entry.token_hash not in e.tokens:
            continue
        if entry.applied == "created" and entry.cause != RESTORED:
            created[entry.token_hash] += 1
        elif entry.applied in REMOVED:
            removed[entry.token_hash] += 1
    for token, times in created.items():
        if times > 1 + removed[token]:
            yield of_saga(
                e.tokens[token], "S6", f"{times} creates took effect, {removed[token]} undone"
            )
    for view in (e.live, e.rows):
        lives = Counter(str(instance["token_hash"]) for instance in view.values())
        for token, times in lives.items():
            if token in e.tokens and times > 1:
                yield of_saga(e.tokens[token], "S6", f"its birthmark is on {times} instances")


def s8(e: Evidence) -> Iterator[Violation]:
    """S8 What our requests removed was ours, and a delete carried the birthmark of what it took.

    What is in memory alone, without a row, has no birthmark that Evolution could compare: if it is
    ours, the global key may remove it.
    """
    requests = {entry.sequence: entry for entry in e.journal if entry.kind == "request"}
    strangers = _arrivals_of_strangers(e)
    rowless: set[str | None] = set()
    for entry in e.journal:
        if entry.applied in ("half_created", "removed_from_database"):
            rowless.add(entry.token_hash)
        elif entry.applied in CREATED:
            rowless.discard(entry.token_hash)
        by = requests.get(entry.caused_by or 0)
        if entry.applied not in REMOVED or by is None or "rival" in (entry.cause or ""):
            continue
        # Evolution removes by name, a while after its answer: who takes the name in between
        # can't be helped by anybody.
        if any(at >= by.received_at for at in strangers[entry.name or ""]):
            continue
        if entry.token_hash not in e.tokens:
            yield Violation("S8", f"instance {entry.name}", f"a stranger's was removed: {by.path}")
        elif by.operation == "delete" and (by.key_kind, by.key_hash) != (
            "instance",
            entry.token_hash,
        ):
            if by.key_kind == "global" and entry.token_hash in rowless:
                continue
            yield of_saga(e.tokens[entry.token_hash], "S8", f"deleted with a {by.key_kind} key")


def s9(e: Evidence) -> Iterator[Violation]:
    """S9 When a create says that its instance is there, Evolution has made it."""
    lives = _lives(e)
    for saga_id in e.of("create-integration"):
        if e.instance(saga_id) in e.excuses.names:
            continue
        for recorded in e.histories[saga_id]:
            event = recorded.event
            if not (isinstance(event, StepSucceeded) and event.step == "evolution"):
                continue
            at = recorded.recorded_at.timestamp()
            if not any(since <= at + _SLACK for since in lives[saga_id]):
                yield of_saga(saga_id, "S9", "it was told to be there before it was made")


def s10(e: Evidence) -> Iterator[Violation]:
    """S10 A row is there if, and only if, its create completed and no delete did since."""
    for saga_id in e.of("create-integration"):
        if e.saved(saga_id) != (saga_id in e.integrations):
            there = "no row" if e.saved(saga_id) else "a row"
            yield of_saga(
                saga_id, "S10", f"the log ends as {_end(e, saga_id)}, and there is {there}"
            )
    for id_, row in e.integrations.items():
        if id_ not in e.histories:
            yield Violation("S10", f"row {id_}", "no saga made it")
        elif row["organization_id"] != e.start(id_).organization_id:
            yield of_saga(id_, "S10", "its row is another organization's")
        elif row["config"].get("instance_name") != e.instance(id_):
            yield of_saga(id_, "S10", "its row names another instance")


def s12(e: Evidence) -> Iterator[Violation]:
    """S12 A routing key lives an hour at most, and tells what the row of its instance tells."""
    by_name = {row["config"].get("instance_name"): row for row in e.integrations.values()}
    for name, (value, ttl) in e.cache.items():
        if not 0 < ttl <= _LONGEST_TTL:
            yield Violation("S12", f"key of {name}", f"its time to live is {ttl} ms")
        row = by_name.get(name)
        if row is None:
            yield Violation("S12", f"key of {name}", "there is no such integration")
        elif json.loads(value)["organization_id"] != str(row["organization_id"]):
            yield Violation("S12", f"key of {name}", "it names another organization")


def s19(e: Evidence) -> Iterator[Violation]:
    """S19 An attempt sends one create, so Evolution gets no more of them than were recorded.

    A removal that meets half an instance time and again sends one as well, which must fail.
    """
    attempts: Counter[str] = Counter()
    creates = set(e.of("create-integration"))
    for saga_id, history in e.histories.items():
        for event in (r.event for r in history):
            if isinstance(event, StepStarted | CompensationStarted) and event.step == "evolution":
                makes = saga_id in creates and isinstance(event, StepStarted)
                attempts[str(e.instance(saga_id))] += makes or event.attempt >= PATIENCE
    sent = Counter(x.name for x in e.journal if x.kind == "request" and x.operation == "create")
    for sent_name, times in sent.items():
        if times > attempts[str(sent_name)]:
            sentence = f"{times} creates in {attempts[str(sent_name)]} attempts"
            yield Violation("S19", f"instance {sent_name}", sentence)


def s20(e: Evidence) -> Iterator[Violation]:
    """S20 A row says that it is connected if, and only if, Evolution says so."""
    for id_, row in e.integrations.items() if e.reconciled else ():
        instance = e.live.get(str(row["config"].get("instance_name")))
        if instance is None or id_ in e.flagged or not row["enabled"]:
            continue
        is_open = instance["state"] == "open"
        if is_open != (row["status"] == "connected"):
            sentence = f"its row says {row['status']}, Evolution says {instance['state']}"
            yield of_saga(id_, "S20", sentence)


EFFECTS: Final[Sequence[Check]] = (s5, s6, s8, s9, s10, s12, s19, s20)


def _end(e: Evidence, saga_id: UUID) -> str:
    return e.histories[saga_id][-1].event.type


def _intents(e: Evidence) -> dict[str, float]:
    """When the first attempt at an instance was claimed, by its name."""
    found: dict[str, float] = {}
    for saga_id, history in e.histories.items():
        name = e.instance(saga_id)
        for recorded in history:
            if name and isinstance(recorded.event, StepStarted | CompensationStarted):
                at = recorded.recorded_at.timestamp()
                found[name] = min(at, found.get(name, at))
    return found


def _lives(e: Evidence) -> dict[UUID, list[float]]:
    """When instances with the birthmark of each create began to live."""
    found: dict[UUID, list[float]] = defaultdict(list)
    for entry in e.journal:
        if entry.applied in CREATED and entry.token_hash in e.tokens:
            found[e.tokens[entry.token_hash]].append(entry.received_at)
    return found


def _arrivals_of_strangers(e: Evidence) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for entry in e.journal:
        if entry.applied in CREATED and entry.token_hash not in e.tokens:
            found[entry.name or ""].append(entry.received_at)
    return found
