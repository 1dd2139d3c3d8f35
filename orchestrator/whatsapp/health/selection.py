"""Which integrations of one server a round asks about by name, found page by page. Pure.

Whatever number of them a server has, only those are kept that will be asked about or written down:
what looks wrong in the list, missing ones first, and of the others those that were asked about
longest ago, as many as it takes for each to be asked about within a day. Missing ones take half of
the room from what is listed at most: they may stay missing for ever.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from evosaga.orchestrator.whatsapp.health.connection_state import (
    WELL,
    Judgement,
    Record,
    next_state,
)
from evosaga.orchestrator.whatsapp.integrations.smallest import Smallest
from evosaga.orchestrator.whatsapp.reconciliation import incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.classify import can_be_sent, found
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import expected
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Row, Snapshot

ILL: Final = 500
"""Integrations that look wrong and are asked about, a round and server."""
_IN_TURN: Final = 20
"""Those that look well and are asked about all the same, at least."""
_TURN: Final = 0.9 * 86400.0
"""Seconds within which each of them has its turn, with something to spare for what is put off."""
_NEW: Final = 5000
"""Those seen for the first time that a round writes down; of more, the next round does."""


def in_turn(listed: int, every: float) -> int:
    """How many of so many a round asks about that look well; rounds are ``every`` seconds apart."""
    return max(_IN_TURN, math.ceil(listed * min(every, _TURN) / _TURN))


@dataclass(frozen=True, slots=True)
class Sight:
    """One integration as its row, the list and the last look show it."""

    row: Row
    instance: Instance | None
    record: Record | None
    judgement: Judgement | None
    lacks_settings: bool = False

    @property
    def checked(self) -> float:
        """When Evolution was last asked about it by name."""
        at = self.record.checked_at if self.record else None
        return at.timestamp() if at else 0.0


@dataclass(slots=True)
class Selection:
    """Of one server. ``everybody``: all are kept, since a person wants to know of each."""

    now: datetime
    alert_after: float
    turns: int
    everybody: bool = False
    states: Counter[str] = field(default_factory=Counter)
    """Of those that will not be asked about."""
    new: list[Sight] = field(default_factory=list)
    """Those of them that have to be written down all the same."""
    rest: list[Sight] = field(default_factory=list)
    unknown: list[Row] = field(default_factory=list)
    should: int = 0
    """Rows that should have an instance."""
    missing: int = 0
    absent: Smallest[Sight] = field(init=False)
    """What looks wrong, since the list lacks it."""
    ill: Smallest[Sight] = field(init=False)
    """What looks wrong as the list has it."""
    well: Smallest[Sight] = field(init=False)

    def __post_init__(self) -> None:
        self.absent, self.ill, self.well = Smallest(ILL), Smallest(ILL), Smallest(self.turns)

    def asked(self) -> list[Sight]:
        """Which are asked about, in that order."""
        return [*self.absent.in_order(), *self.ill.in_order(), *self.well.in_order()]

    def take(self, page: Snapshot, known: Mapping[UUID, Record]) -> None:
        """The next rows, with what the list says of their names."""
        for name, row in page.named().items():
            instance = page.instances.get(name)
            if expected(page, row):
                self.should += 1
                self.missing += instance is None
            if not _free(page, row):
                self.states["unknown"] += 1
                if self.everybody:
                    self.unknown.append(row)
                continue
            self._sort(self._seen(page, row, known.get(row.id)))

    def _seen(self, page: Snapshot, row: Row, record: Record | None) -> Sight:
        lacks = incomplete_instances.settings_missing(page, row.instance_name)
        one = found(page, row.instance_name, row)
        judgement = next_state(
            one, record, self.now, alert_after=self.alert_after, whole=False if lacks else None
        )
        return Sight(row, one.instance, record, judgement, lacks)

    def _sort(self, one: Sight) -> None:
        if _quiet(one):
            left = self.well.offer(one.checked, one)
        else:
            left = (self.ill if one.instance else self.absent).offer(one.checked, one)
            if len(self.absent) + len(self.ill) > ILL:
                left = (self.absent if len(self.absent) > ILL // 2 else self.ill).drop()
        if left is not None:
            self._not_asked(left)

    def _not_asked(self, one: Sight) -> None:
        if self.everybody:
            self.rest.append(one)
            return
        # What is missing in the list and was not asked for by name is not known to be gone.
        told = one.judgement if one.instance is not None else None
        self.states[told.record.state if told else "unknown"] += 1
        fresh = one.record is None or one.lacks_settings
        if told is not None and fresh and len(self.new) < _NEW:
            self.new.append(one)


def _quiet(one: Sight) -> bool:
    """Whether the list shows nothing that has to be looked into."""
    judgement, record = one.judgement, one.record
    if judgement is None:
        return False
    news = record is not None and (record.state != judgement.record.state or record.reconnects)
    return judgement.record.state in WELL and judgement.status is None and not news


def _free(page: Snapshot, row: Row) -> bool:
    """Whether no saga is at work for it, and it can be asked about."""
    return (
        row.instance_name not in page.busy_names
        and row.organization_id not in page.busy_organizations
        and can_be_sent(row.instance_name)
    )
