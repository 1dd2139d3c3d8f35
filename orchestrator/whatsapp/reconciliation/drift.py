"""From what was found to what is wrong, why, and what would mend it. Pure: no clock, no I/O.

Every name that any of the stores knows becomes a cell of the truth table (``table``); an
organization that has several instances is looked at as a whole first, since which of them is to
be kept decides what the others are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from evosaga.orchestrator.whatsapp.reconciliation.classify import (
    Name,
    belongs,
    found,
    places_of,
    row_says,
)
from evosaga.orchestrator.whatsapp.reconciliation.repair_commands import (
    SEEN,
    RepairCommand,
    command_for,
)
from evosaga.orchestrator.whatsapp.reconciliation.rules import (
    AGREE,
    BUSY,
    VERDICTS,
    Cell,
    KeyCell,
    KeySays,
    Place,
    Policy,
    judge_key,
    verdict_of,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import (
    Instance,
    Key,
    Memory,
    Row,
    Snapshot,
)
from evosaga.sagas.whatsapp.types import CANT_BE_HANDLED, DEFAULT_SERVER, unaddressable

_FEW: Final = 3
_SHARE: Final = 0.2
"""More than so many, or such a share, at once is no drift but a look that went wrong."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is not as it should be: what, where, why, and what mends it."""

    what: str
    where: str
    organization_id: UUID | None
    cause: str
    repair: str
    policy: Policy
    command: RepairCommand | None = None
    servers: Sequence[str] = ()
    """The Evolution servers that must be looked at to see it; none for what is in Redis alone."""

    @property
    def waits(self) -> bool:
        """Whether other repairs come first: a row must name what is kept before the rest goes."""
        return self.command is not None and self.command.type == "instance.remove"


def reconcile_plan(snapshot: Snapshot) -> list[Drift]:
    """Everything that drifted, by organization and name; empty when the stores agree."""
    rows = snapshot.named()
    names = {name: found(snapshot, name, rows.get(name)) for name in {*snapshot.instances, *rows}}
    places, kept = places_of(snapshot, names)
    drifts = [
        drift
        for one in names.values()
        if (drift := _drift(snapshot, one, places.get(one.name, "spare"), kept, names)) is not None
    ]
    drifts += _key_drifts(snapshot, rows, names)
    drifts += [
        _told(
            "named_twice",
            row.instance_name,
            row.organization_id,
            servers={row.server, rows[row.instance_name].server},
        )
        for row in snapshot.rows
        if row.enabled and rows[row.instance_name] is not row
    ]
    drifts += [
        _told(
            "elsewhere",
            name,
            one.organization_id,
            {"server": server},
            servers={server, *_servers_of(one.row, one.instance)},
        )
        for name, server in snapshot.elsewhere.items()
        if (one := names.get(name)) and one.whose != "stranger" and not _busy(snapshot, one)
    ]
    return sorted(
        _without_haste(snapshot, drifts),
        key=lambda d: (str(d.organization_id or "~"), d.where, d.what),
    )


def strangers(snapshot: Snapshot) -> list[str]:
    """The instances that neither a row, a birthmark, a saga nor their name says to be ours."""
    rows = snapshot.named()
    return sorted(
        name
        for name in snapshot.instances
        if name not in rows and found(snapshot, name, None).whose == "stranger"
    )


def implausibility(snapshot: Snapshot, server: str = DEFAULT_SERVER) -> str | None:
    """Why nothing may be concluded from a look at this server; None when it can be believed.

    A list that came back empty or in part makes healthy integrations look lost. When many are
    missing at once, each of them must have been asked for by name and be gone there, too.
    """
    here = (row for row in snapshot.rows if row.server == server)
    expected = [row for row in here if _expected(snapshot, row)]
    missing = [row for row in expected if row.instance_name not in snapshot.instances]
    if not too_many(len(missing), len(expected)):
        return None
    gone: tuple[Memory, ...] = ("absent", "half", "foreign")
    if all(snapshot.memory.get(row.instance_name) in gone for row in missing):
        return None
    return (
        f"{len(missing)} of {len(expected)} integrations are not in Evolution's list, and asked "
        "for by name not all of them are gone: the list is not to be believed"
    )


def too_many(missing: int, of: int) -> bool:
    """Whether that many can hardly have vanished one by one."""
    return missing > max(_FEW, _SHARE * of)


def needs_probe(snapshot: Snapshot) -> list[str]:
    """The names about which Evolution's memory should be asked, missing ones first."""
    drifts = (d for d in reconcile_plan(snapshot) if d.command and d.what not in _ABOUT_KEYS)
    names = dict.fromkeys(d.where for d in drifts)
    return sorted(names, key=lambda name: (name in snapshot.instances, name))


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


_HIDDEN: Final = "by hand: Evolution lists it without its token, which would show whose it is"
_ABOUT_KEYS: Final = frozenset({"key_left", "key_wrong", "key_unreadable", "key_eternal"})


# --- what is wrong, and its repair ------------------------------------------------------------


def _drift(
    snapshot: Snapshot,
    one: Name,
    place: Place,
    kept: Mapping[UUID, str | None],
    names: Mapping[str, Name],
) -> Drift | None:
    says = row_says(one.row, one.instance)
    busy = _busy(snapshot, one)
    cell = Cell("busy" if busy else "free", one.sight, one.whose, says, place, one.log)
    code = verdict_of(cell)
    if code in (AGREE, BUSY):
        return None
    keeps = kept.get(one.organization_id) if one.organization_id else None
    row_says_so = one.row.status if one.row else ""
    blanks = {
        "kept": keeps or "none of them",
        "says": f"{row_says_so} with another number" if says == "unnumbered" else row_says_so,
        "seen": SEEN.get(one.sight, ""),
        "name": one.name,
    }
    told = _told(
        *(code, one.name, one.organization_id, blanks, command_for(code, one, names)),
        servers=_servers_of(one.row, one.instance),
    )
    if told.command is None and one.instance is not None and one.instance.hidden:
        return replace(told, repair=_HIDDEN)
    return told


def _servers_of(*found: Row | Instance | None) -> set[str]:
    return {one.server for one in found if one is not None}


def _told(
    code: str,
    name: str,
    organization_id: UUID | None,
    blanks: Mapping[str, str] | None = None,
    command: RepairCommand | None = None,
    servers: Collection[str] = (),
) -> Drift:
    verdict, blanks = VERDICTS[code], blanks or {}
    policy, repair = verdict.policy, verdict.repair.format(**blanks)
    if verdict.action is not None and not can_be_sent(name):
        policy, command = "never", None
        repair = f"{CANT_BE_HANDLED} ({unaddressable(name)})"
    elif verdict.action is not None and command is None:
        policy, repair = "never", "by hand: a restart of Evolution may clear it up"
    cause = verdict.cause.format(**blanks)
    return Drift(
        code, name, organization_id, cause, repair, policy, command, tuple(sorted(servers))
    )


def can_be_sent(name: str) -> bool:
    """Whether the name can be part of an address without meaning something else there."""
    return unaddressable(name) is None


def _busy(snapshot: Snapshot, one: Name) -> bool:
    """An open saga decides. What the log says is over is nobody's business any more."""
    over = one.row is None and one.whose == "ours" and one.log == "ended"
    return one.name in snapshot.busy_names or (
        not over and one.organization_id in snapshot.busy_organizations
    )


def _key_drifts(
    snapshot: Snapshot, rows: Mapping[str, Row], names: Mapping[str, Name]
) -> list[Drift]:
    drifts: list[Drift] = []
    for key in snapshot.keys:
        name, row = key.instance_name, rows.get(key.instance_name)
        row = row if row is not None and row.enabled else None
        organization = row.organization_id if row else _organization_of(key, names.get(name))
        busy = name in snapshot.busy_names or organization in snapshot.busy_organizations
        code = judge_key(
            KeyCell("busy" if busy else "free", _key_says(key, row), "enabled" if row else "none")
        )
        if code not in (AGREE, BUSY):
            command = RepairCommand("key.drop", {"instance_name": name})
            servers = _servers_of(row, snapshot.instances.get(name))
            drifts.append(_told(code, name, organization, command=command, servers=servers))
    return drifts


def _key_says(key: Key, row: Row | None) -> KeySays:
    if not key.readable:
        return "unreadable"
    if row is not None and (
        key.organization_id != str(row.organization_id)
        or row.clinic_id not in (None, key.clinic_id)
    ):
        return "wrong"
    return "right" if key.expires else "eternal"


def _organization_of(key: Key, one: Name | None) -> UUID | None:
    """Whose a key is that no row stands behind: its instance's, else whose it says it is."""
    if one is not None and one.organization_id is not None:
        return one.organization_id
    try:
        return UUID(key.organization_id or "")
    except ValueError:
        return None


# --- no haste ---------------------------------------------------------------------------------


def _expected(snapshot: Snapshot, row: Row) -> bool:
    """Whether Evolution should have an instance for this row."""
    return (
        row.enabled
        and row.status != "deleting"
        and row.flag not in ("missing", "foreign")
        and row.instance_name not in snapshot.busy_names
        and row.organization_id not in snapshot.busy_organizations
    )


def _without_haste(snapshot: Snapshot, drifts: Sequence[Drift]) -> list[Drift]:
    """Rows that vanish by the dozen were not deleted one by one: then nothing goes by itself."""
    rowless = sum(drift.what == "rowless" for drift in drifts)
    ours = sum(instance.made_by is not None for instance in snapshot.instances.values())
    if not too_many(rowless, ours):
        return list(drifts)
    many = f"{rowless} of our instances have no row: has the table been emptied?"
    return [replace(d, cause=many, policy="ask") if d.what == "rowless" else d for d in drifts]
