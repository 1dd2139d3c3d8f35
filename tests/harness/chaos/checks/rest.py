"""What must be so once all faults are over and the run has come to rest: L2-L4, L6-L9."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID

from tests.harness.chaos.checks.histories import Check
from tests.harness.chaos.evidence import Evidence, Violation

_OPEN: Final = ("running", "compensating")


def l2(e: Evidence) -> Iterator[Violation]:
    """L2 Every saga has ended."""
    for saga_id, row in e.sagas.items():
        if row["status"] in _OPEN:
            where = f"{row['status']} at {row['step']}, {row['code']}: {row['message']}"
            yield Violation("L2", f"saga {saga_id}", where, saga_id)


def l3(e: Evidence) -> Iterator[Violation]:
    """L3 No orphans: a live instance with a birthmark of ours has a row, or an open saga."""
    open_names = {row["instance_name"] for row in e.sagas.values() if row["status"] in _OPEN}
    for view, kind in ((e.live, "memory"), (e.rows, "database")):
        for name, instance in view.items():
            maker = e.tokens.get(str(instance["token_hash"]))
            if maker is not None and maker not in e.integrations and name not in open_names:
                yield Violation("L3", f"instance {name}", f"an orphan in Evolution's {kind}", maker)


def l4(e: Evidence) -> Iterator[Violation]:
    """L4 No ghosts: every row has its instance, in both of Evolution's views, or says that not.

    And the instance is whole: with the webhook that its row speaks of, and with settings.
    """
    hashes = {saga_id: token for token, saga_id in e.tokens.items()}
    for id_, row in e.integrations.items():
        name = str(row["config"].get("instance_name"))
        for view, kind in ((e.live, "memory"), (e.rows, "database")):
            if id_ in e.flagged:
                continue
            if view.get(name, {}).get("token_hash") != hashes.get(id_):
                sentence = f"the row of {name} has no instance in Evolution's {kind}"
                yield Violation("L4", f"row {id_}", sentence, id_)
        there = e.rows.get(name, {})
        wanted = {"settings"} | ({"webhook"} if row["config"].get("webhook_url") else set())
        lacking = sorted(which for which in wanted if there.get(which) is False)
        if lacking and id_ not in e.flagged:
            sentence = f"the instance {name} is there without its {' and '.join(lacking)}"
            yield Violation("L4", f"row {id_}", sentence, id_)
        if row["status"] == "deleting":
            yield Violation("L4", f"row {id_}", "it says deleting, and nobody deletes it", id_)


def l6(e: Evidence) -> Iterator[Violation]:
    """L6 No saga that has ended has an owner, and none that is open lacks a next time."""
    for saga_id, row in e.sagas.items():
        if row["status"] not in _OPEN and row["owner"] is not None:
            yield Violation("L6", f"saga {saga_id}", f"{row['status']} and owned", saga_id)
        if row["status"] in _OPEN and row["next_at"] is None:
            yield Violation("L6", f"saga {saga_id}", "open, and never due again", saga_id)


def l7(e: Evidence) -> Iterator[Violation]:
    """L7 No transaction was left open."""
    if e.database.get("stuck"):
        number = e.database["stuck"]
        yield Violation("L7", "Postgres", f"{number} connections idle in a transaction")


def l8(e: Evidence) -> Iterator[Violation]:
    """L8 Every integration has its routing key once it was read."""
    for id_, row in e.integrations.items():
        name = str(row["config"].get("instance_name"))
        if name not in e.cache:
            yield Violation("L8", f"instance {name}", "it has no routing key", id_)


def l9(e: Evidence) -> Iterator[Violation]:
    """L9 After a replay in a healthy world no saga is parked."""
    for saga_id, row in e.sagas.items():
        if row["status"] == "failed" and row["instance_name"] not in e.excuses.names:
            sentence = f"parked at {row['step']}, {row['code']}: {row['message']}"
            yield Violation("L9", f"saga {saga_id}", sentence, saga_id)


REST: Final[Sequence[Check]] = (l2, l3, l4, l6, l7, l8, l9)


def history_of(e: Evidence, saga_id: UUID) -> list[str]:
    """A saga's history as lines for a person who has to find out."""
    lines = []
    for recorded in e.histories.get(saga_id, ()):
        event: dict[str, Any] = recorded.event.model_dump(mode="json", exclude_none=True)
        for private in ("type", "input", "command_hash"):
            event.pop(private, None)
        at = recorded.recorded_at.strftime("%H:%M:%S.%f")[:-3]
        told = json.dumps(event, ensure_ascii=False)[:240]
        lines.append(f"{at} {recorded.sequence:>3} {recorded.event.type} {told}")
    return lines
