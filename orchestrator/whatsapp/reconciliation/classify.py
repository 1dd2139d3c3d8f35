"""What is true of each instance name, in the terms of the truth table. Pure.

An organization that has several instances is looked at as a whole, since which of them is to be
kept decides what the others are.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from evosaga.orchestrator.whatsapp.reconciliation.rules import (
    AGREE,
    BUSY,
    Cell,
    LogSays,
    Ownership,
    Place,
    Presence,
    RowSays,
    verdict_of,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Memory, Row, Snapshot
from evosaga.sagas.whatsapp.row_status import number_to_write
from evosaga.sagas.whatsapp.types import unaddressable


@dataclass(frozen=True, slots=True)
class Name:
    """One instance name and all that was found under it."""

    name: str
    instance: Instance | None
    row: Row | None
    sight: Presence
    whose: Ownership
    log: LogSays
    organization_id: UUID | None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """Every name that any store knows, and the verdict of the truth table on it."""

    names: Mapping[str, Name]
    kept: Mapping[UUID, str | None]
    """The instance that each organization keeps."""
    verdicts: Mapping[str, str]
    """By name, of those that drifted: where the stores agree or a saga is at work there is none."""


def classify(snapshot: Snapshot) -> Classification:
    """Third stage of a reconcile run: one cell of the truth table (``rules``) for every name."""
    rows = snapshot.named()
    names = {name: found(snapshot, name, rows.get(name)) for name in {*snapshot.instances, *rows}}
    places, kept = places_of(snapshot, names)
    verdicts = {
        name: code
        for name, one in names.items()
        if (code := _verdict(snapshot, one, places.get(name, "spare"))) not in (AGREE, BUSY)
    }
    return Classification(names, kept, verdicts)


def _verdict(snapshot: Snapshot, one: Name, place: Place) -> str:
    says = row_says(one.row, one.instance)
    busy = is_busy(snapshot, one)
    return verdict_of(Cell("busy" if busy else "free", one.sight, one.whose, says, place, one.log))


def is_busy(snapshot: Snapshot, one: Name) -> bool:
    """Whether an open saga decides. What the log says is over holds up no repair."""
    over = one.row is None and one.whose == "ours" and one.log == "ended"
    return one.name in snapshot.busy_names or (
        not over and one.organization_id in snapshot.busy_organizations
    )


def can_be_sent(name: str) -> bool:
    """Whether the name can be part of an address without meaning something else there."""
    return unaddressable(name) is None


def strangers(snapshot: Snapshot) -> list[str]:
    """The instances that neither a row, a birthmark, a saga nor their name says to be ours."""
    rows = snapshot.named()
    return sorted(
        name
        for name in snapshot.instances
        if name not in rows and found(snapshot, name, None).whose == "stranger"
    )


def names_of(snapshot: Snapshot, organization_id: UUID) -> list[str]:
    """The instances that an organization has, by row, by birthmark or by name."""
    return [one.name for one in _names_of(snapshot, organization_id)]


def choices(snapshot: Snapshot, organization_id: UUID) -> list[str]:
    """Those of them that it may keep."""
    return [one.name for one in _names_of(snapshot, organization_id) if belongs(one)]


def _names_of(snapshot: Snapshot, organization_id: UUID) -> list[Name]:
    rows = snapshot.named()
    names = (found(snapshot, n, rows.get(n)) for n in sorted({*snapshot.instances, *rows}))
    return [one for one in names if one.organization_id == organization_id]


def found(snapshot: Snapshot, name: str, row: Row | None) -> Name:
    instance = snapshot.instances.get(name)
    memory = snapshot.memory.get(name)
    whose = _whose(snapshot, name, instance, row, memory)
    origin = snapshot.origins.get(instance.made_by) if instance and instance.made_by else None
    organization = row.organization_id if row else None
    if organization is None and whose == "ours" and origin is not None:
        organization = origin.organization_id
    if organization is None and whose == "older":
        organization = snapshot.older.get(name)
    sight = _sight(instance, memory)
    if row is None and instance is not None and instance.hidden and whose != "stranger":
        sight = "unclear"  # its name speaks of us, and its token would have to
    return Name(
        name=name,
        instance=instance,
        row=row,
        sight=sight,
        whose=whose,
        log=origin.recorded if origin else "unknown",
        organization_id=organization,
        memory=memory,
    )


def _sight(instance: Instance | None, memory: Memory | None) -> Presence:
    """Evolution's two views as one word. Its memory is newer than its list, where it was asked."""
    if memory == "unanswered":
        return "unclear"
    if memory == "half":
        return "half"
    if instance is None:
        # Memory has what the list leaves out, under our token: one of the two is not up to date.
        return (
            "absent" if memory in (None, "absent") else "idle" if memory == "foreign" else "unclear"
        )
    if memory == "absent":
        return "half"
    if (memory or instance.status) != "open" or memory == "foreign":
        return "idle"
    # Open without a phone behind it proves nothing, where there should be a phone.
    return "paired" if instance.paired else "open" if instance.passive else "idle"


def _whose(
    snapshot: Snapshot,
    name: str,
    instance: Instance | None,
    row: Row | None,
    memory: Memory | None,
) -> Ownership:
    """Its token proves it, or the row of an integration that older code made vouches for it."""
    if memory == "foreign":
        return "posing"
    if row is not None and row.born:
        kept = instance is None or instance.hidden or instance.made_by == row.id
        return "ours" if kept else "posing"
    if instance is not None and instance.made_by is not None:
        return "ours"
    if row is not None:
        return "older"
    if name in snapshot.ours_by_name:
        return "posing"
    if name in snapshot.older:
        return "older"
    # Under a name that people chose only the saga's id would prove it, and that is forgotten.
    return "ours" if instance is not None and instance.like_ours else "stranger"


def row_says(row: Row | None, instance: Instance | None) -> RowSays:
    if row is None:
        return "none"
    if not row.enabled:
        return "disabled"
    match row.status:
        case "deleting":
            return "deleting"
        case "connected":
            phone = instance.phone if instance else None
            return "unnumbered" if number_to_write(row.number, phone) else "connected"
        case "disconnected":
            return "flagged" if row.flag in ("missing", "half", "foreign") else "disconnected"
        case "pending" if row.fresh and instance is not None and instance.passive:
            return "connected"  # it is open at once, and the row follows with the next check
        case _:  # what older code may have called otherwise is not connected yet
            return "pending"


# --- which instance an organization keeps -----------------------------------------------------


def places_of(
    snapshot: Snapshot, names: Mapping[str, Name]
) -> tuple[dict[str, Place], dict[UUID, str | None]]:
    """The place of every name in its organization, and what each organization keeps."""
    groups: dict[UUID, list[Name]] = defaultdict(list)
    for one in names.values():
        if one.organization_id is not None and belongs(one):
            groups[one.organization_id].append(one)
    places: dict[str, Place] = {}
    kept: dict[UUID, str | None] = {}
    for organization_id, group in groups.items():
        wish = snapshot.keep
        choice = wish.choice if wish and wish.organization_id == organization_id else "connected"
        places |= _choose(group, choice)
        kept[organization_id] = next((n.name for n in group if places[n.name] == "keep"), None)
    return places, kept


def belongs(one: Name) -> bool:
    """Whether it may be what its organization keeps, or a duplicate of that."""
    if one.row is not None:
        return one.row.enabled
    return one.whose == "older" or (one.whose == "ours" and one.log == "alive")


def _choose(group: Sequence[Name], choice: str) -> dict[str, Place]:
    if choice == "none":
        return {one.name: "clear" for one in group}
    chosen: str | None = choice
    contested: set[str] = set()
    if choice == "connected" or all(one.name != choice for one in group):
        chosen, contested = _by_connection(group)
    places: dict[str, Place] = {one.name: "spare" for one in group}
    places |= dict.fromkeys(contested, "contested")
    return places | {chosen: "keep"} if chosen is not None else places


def _by_connection(group: Sequence[Name]) -> tuple[str | None, set[str]]:
    """What the row names, unless another one alone is connected; and those a person must choose
    from."""
    named = next((one for one in group if one.row is not None), None)
    connected = [one for one in group if _connected(one)]
    if named not in connected and len(connected) == 1 and _can_be_named(connected[0], named):
        return connected[0].name, set()
    contested = set() if named in connected else {one.name for one in connected}
    return named.name if named else None, contested


def _connected(one: Name) -> bool:
    """A channel without a phone is open whatever happens, so that proves only what a row says."""
    if one.row is None and one.whose == "ours":
        return one.sight == "paired"
    return one.sight in ("open", "paired") and one.whose in ("ours", "older")


def _can_be_named(one: Name, named: Name | None) -> bool:
    """Whether a row can say so: the organization's own, or one that the log can make again."""
    if named is None or named.row is None:
        return one.whose == "ours"
    return named.row.status != "deleting"
