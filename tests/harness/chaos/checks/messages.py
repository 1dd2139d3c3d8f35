"""What must hold of the streams: S15, S16, L1, L5."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

from evosaga.events.model import SagaCancelRequested, SagaResumed
from tests.harness.chaos.checks.histories import Check, of_saga
from tests.harness.chaos.evidence import Evidence, Violation


def s15(e: Evidence) -> Iterator[Violation]:
    """S15 What was acknowledged is recorded: a saga, an event of one, or a dead letter."""
    if e.group["pending"]:
        return  # not acknowledged yet; L5 speaks of that
    fates = recorded_commands(e)
    buried = {fields.get("message_id", b"").decode() for _, fields in e.dead}
    for stream_id, fields in e.commands:
        told = _read(fields.get("data", b""))
        id_ = told.get("id")
        if told and told.get("data", {}).get("if_possible"):
            continue  # a wish that may come too late, and then there is nothing to be told
        if stream_id not in buried and id_ not in fates:
            sentence = f"acknowledged, and nothing is recorded of {id_}"
            yield Violation("S15", f"message {stream_id}", sentence)


def s16(e: Evidence) -> Iterator[Violation]:
    """S16 Every event was told, and is there, in its saga's order, repeated word by word."""
    told: dict[str, bytes] = {}
    newest: dict[str, int] = defaultdict(lambda: -1)
    for _, fields in e.events:
        event = json.loads(fields["data"])
        if event["id"] in told:
            if told[event["id"]] != fields["data"]:
                yield Violation("S16", f"event {event['id']}", "it was repeated in other words")
            continue
        told[event["id"]] = fields["data"]
        if ":notice:" in event["id"]:
            continue  # not of a saga's history
        sequence = int(event["id"].rpartition(":")[2])
        if sequence < newest[event["subject"]]:
            yield Violation("S16", f"event {event['id']}", "it was told after a later one")
        newest[event["subject"]] = sequence
    for saga_id, history in e.histories.items():
        for recorded in history:
            if f"{saga_id}:{recorded.sequence}" not in told:
                yield of_saga(saga_id, "S16", f"event {recorded.sequence} was never told")


def l1(e: Evidence) -> Iterator[Violation]:
    """L1 Every command that was acknowledged became a saga, an event of one, or a dead letter."""
    fates = recorded_commands(e)
    buried = Counter(fields.get("data", b"") for _, fields in e.dead)
    lost_at = max(e.excuses.redis_lost_at, default=0.0)
    for told in e.published:
        # Dead letters are Redis's alone, and go with it.
        gone = told.at <= lost_at and told.kind not in ("create", "delete") and not told.http
        fate = told.id in fates if told.kind != "poison" else buried[told.body] > 0
        if not (fate or buried[told.body] or gone):
            yield Violation("L1", f"command {told.id}", f"nobody knows this {told.kind}")
    for saga_id, history in e.histories.items():
        for recorded in history:
            follow_up = getattr(recorded.event, "follow_up", None)
            id_ = f"{saga_id}:{recorded.sequence}"
            if follow_up is None or follow_up.data.get("if_possible"):
                continue
            if id_ not in fates:
                sentence = f"the {follow_up.type} that it commanded has no saga"
                yield Violation("L1", f"command {id_}", sentence, saga_id)


def l5(e: Evidence) -> Iterator[Violation]:
    """L5 Nothing waits: no pending message, no lag, and the relay has told everything."""
    for what, number in e.group.items():
        if number:
            yield Violation("L5", "stream of commands", f"{what} is {number}")
    if e.cursor != e.last_position:
        yield Violation("L5", "relay", f"told up to {e.cursor} of {e.last_position}")
    twice = {p.id for p in e.published if p.kind == "conflict"}  # either of the two may be first
    steering = ("poison", "cancel", "replay")
    bad = {p.body for p in e.published if p.kind in steering or p.id in twice}
    for stream_id, fields in e.dead:
        if e.published and fields.get("data", b"") not in bad:
            code, message = fields.get("code", b"?").decode(), fields.get("message", b"").decode()
            yield Violation("L5", f"dead letter {stream_id}", f"a good command: {code}, {message}")


MESSAGES: Final[Sequence[Check]] = (s15, s16, l1, l5)


def recorded_commands(e: Evidence) -> set[str]:
    """Ids of commands that became a saga, or an event of one."""
    fates = {str(row["command_id"]) for row in e.sagas.values()}
    for history in e.histories.values():
        fates |= {
            r.event.by for r in history if isinstance(r.event, SagaResumed | SagaCancelRequested)
        }
    return fates


def _read(body: bytes) -> dict[str, Any]:
    """A command, if it can be read."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and isinstance(told.get("data"), dict) else {}
