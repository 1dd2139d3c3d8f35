"""The state machine of one integration's connection. Pure.

States, and whether Evolution can be asked to connect again:

    connected    a phone is connected (or the channel needs none)
    pending      it waits for its first phone: a person must scan the QR code
    incomplete   one of these two, but its events go nowhere, or it has no settings
    connecting   Evolution is at it by itself
    down         the connection broke, the phone is still linked               yes, patiently
    needs_qr     logged out (401, 406): a person must scan again
    banned       WhatsApp bans or forbids the number (402, 403): a new QR code alone mends nothing
    missing      Evolution has no such instance; it is not made again
    half         only half of it is there
    foreign      an instance of another owner has its name

A row follows a lost connection after two looks, so that one that comes and goes leaves it alone;
one that is there again is believed at once. One that was connected again only for a moment waits
longer for each further try.
"""

import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from evosaga.orchestrator.whatsapp.reconciliation.classify import Name
from evosaga.sagas.whatsapp.row_status import (
    FINAL_CODES,
    ConnectionHealth,
    RowStatus,
    after_check,
    ended,
    number_to_write,
)

WELL: Final = frozenset({"connected", "pending"})
CURES: Final[dict[str, str]] = {
    "connected": "",
    "pending": "scan its QR code",
    "incomplete": "its webhook or settings are set again by itself; now: evosaga reconcile --fix",
    "connecting": "Evolution is connecting by itself",
    "down": "it is connected again by itself",
    "needs_qr": "the phone was logged out: scan a new QR code",
    "banned": "WhatsApp bans or forbids the number: see what it says on the phone itself, and scan "
    "a new QR code when that is lifted",
    "missing": "delete it and create it anew: Evolution does not have it any more",
    "half": "delete it and create it anew; a restart of Evolution may bring it back",
    "foreign": "delete it: the name belongs to another instance now",
}
_SURE: Final = 2
"""Looks in a row that must agree before a lost connection is believed."""
STEADY: Final = 3
"""Looks in a row after which a connection counts as one that lasts."""
_FIRST_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 3600.0
_SPREAD: Final = 30.0
COMES_BACK: Final = 15.0
"""Seconds that a connection may take to come back before it counts as still down."""
_CLOCKS: Final = timedelta(seconds=60)
"""How far Evolution's clock may be from ours."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of an integration's connection between two looks.

    ``since`` and ``looks`` count from when it last changed between well and not well.
    """

    state: str
    since: datetime
    looks: int = 1
    reason: int | None = None
    connected_at: datetime | None = None
    reconnects: int = 0
    next_reconnect_at: datetime | None = None
    alerted_at: datetime | None = None
    checked_at: datetime | None = None
    """When Evolution was last asked about it by name."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to remember, and what the row should say (None: as it does)."""

    record: Record
    status: RowStatus | None = None
    number: str | None = None
    reconnect: bool = False
    alert: bool = False


def state_of(one: Name, record: Record | None) -> ConnectionHealth | None:
    """How the connection is; None when that is unknown."""
    match one.sight:
        case "unclear":
            return None
        case "absent":
            return "missing"
        case "half":
            return "half" if one.whose != "posing" else "foreign"
    if one.whose in ("posing", "stranger"):
        return "foreign"
    if one.sight in ("open", "paired"):
        return "connected"
    instance = one.instance
    if instance is None or not (instance.paired or instance.passive):
        return "pending"
    if (one.memory or instance.status) == "connecting":
        return "connecting"
    return ended(instance.reason) if _ended_for_good(one, record) else "down"


def next_state(
    one: Name,
    record: Record | None,
    now: datetime,
    *,
    alert_after: float,
    eager: bool = False,
    whole: bool | None = None,
) -> Judgement | None:
    """None when the connection's state is unknown; then everything stays as it was.

    ``eager``: a person asks for it, so one look is enough and nothing waits. ``whole``: whether
    webhook and settings are as they should be; None: not looked at this time.
    """
    state = state_of(one, record)
    if state is None or one.row is None:
        return None
    new = _remembered(one, record, state, _shown(state, record, whole), now)
    sure = eager or new.looks >= _SURE
    reconnect = state == "down" and sure and not _passive(one)
    if reconnect:
        new = _scheduled(new, now)
    due = eager and not _just_asked(one.row.id, new, now)
    due = due or (new.next_reconnect_at is not None and new.next_reconnect_at <= now)
    alert = _alert_is_due(new, now, alert_after)
    number = _number(one, state)
    return Judgement(
        record=replace(new, alerted_at=now) if alert else new,
        status=after_check(one.row.status, state, sure=sure, new_number=number is not None),
        number=number,
        reconnect=reconnect and due,
        alert=alert,
    )


def _remembered(
    one: Name,
    record: Record | None,
    state: ConnectionHealth,
    shown: ConnectionHealth,
    now: datetime,
) -> Record:
    """The record after this look. Time and looks go on counting while well stays well, ill ill."""
    well = shown in WELL
    same = record is not None and (record.state in WELL) == well
    base = _of_this_clock(record, now) if record is not None else Record(shown, now, looks=0)
    new = replace(
        base,
        state=shown,
        reason=one.instance.reason if one.instance and not well else None,
        since=base.since if same else now,
        looks=base.looks + 1 if same else 1,
        connected_at=now if state == "connected" else base.connected_at,
        checked_at=now if one.memory else base.checked_at,
    )
    if not well:
        return new
    if new.looks < STEADY:
        return replace(new, alerted_at=None)
    return replace(new, alerted_at=None, reconnects=0, next_reconnect_at=None)


def _scheduled(record: Record, now: datetime) -> Record:
    """With the time of a first reconnect, spread: a whole server's may have gone down at once."""
    if record.next_reconnect_at is not None:
        return record
    wait = random.uniform(0, _SPREAD)  # noqa: S311  # not a secret
    return replace(record, next_reconnect_at=now + timedelta(seconds=wait))


def _alert_is_due(record: Record, now: datetime, alert_after: float) -> bool:
    long = alert_after > 0 and (now - record.since).total_seconds() >= alert_after
    return record.state not in WELL and long and record.alerted_at is None


def _of_this_clock(record: Record, now: datetime) -> Record:
    """Without what only a clock that was put back since can have written."""
    due, latest = record.next_reconnect_at, now + timedelta(seconds=_LONGEST_PAUSE * 1.25)
    return replace(
        record,
        since=min(record.since, now),
        next_reconnect_at=now if due is not None and due > latest else due,
    )


def _shown(state: ConnectionHealth, record: Record | None, whole: bool | None) -> ConnectionHealth:
    """The same, or ``incomplete``; until the next look at them it is what it was."""
    if state not in WELL:
        return state
    if whole is None:
        whole = record is None or record.state != "incomplete"
    return state if whole else "incomplete"


def after_reconnect(integration: UUID, record: Record, now: datetime) -> Record:
    """After asking Evolution to connect: the next time, should it be needed, is later."""
    return replace(
        record,
        reconnects=record.reconnects + 1,
        next_reconnect_at=now + _pause_after(integration, record.reconnects),
    )


def _pause_after(integration: UUID, reconnects: int) -> timedelta:
    """How long to wait after one more than that many tries: spread over integrations, and the same
    whenever it is asked for, so that the time of a try follows from that of the next one.
    """
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(reconnects, 10))
    spread = random.Random(f"{integration} {reconnects}").uniform(0.75, 1.25)  # noqa: S311
    return timedelta(seconds=pause * spread)


def _just_asked(integration: UUID, record: Record, now: datetime) -> bool:
    """Whether Evolution was asked, perhaps by another process, and still has time to connect it.

    ``now`` is when this look began, which may be before that.
    """
    if not record.reconnects or record.next_reconnect_at is None:
        return False
    asked = record.next_reconnect_at - _pause_after(integration, record.reconnects - 1)
    return abs(now - asked) < timedelta(seconds=COMES_BACK)


def _number(one: Name, state: ConnectionHealth) -> str | None:
    """The phone's number, when the row has another one or none."""
    if state != "connected" or one.instance is None or one.row is None:
        return None
    return number_to_write(one.row.number, one.instance.phone)


def _ended_for_good(one: Name, record: Record | None) -> bool:
    """Evolution keeps the last code after a phone came back; one from before that says nothing."""
    instance = one.instance
    if instance is None or instance.reason not in FINAL_CODES:
        return False
    seen = record.connected_at if record else None
    return seen is None or instance.closed_at is None or instance.closed_at >= seen - _CLOCKS


def _passive(one: Name) -> bool:
    return one.instance is not None and one.instance.passive
