"""The plan of a reconcile run: what is wrong, why, and what would mend it. Pure: no clock, no I/O.

Fourth stage, after ``observe``, ``probes`` and ``classify``; ``confirmations`` and ``reconciler``
follow.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from evosaga.orchestrator.whatsapp.reconciliation.classify import (
    Classification,
    Name,
    can_be_sent,
    classify,
    is_busy,
    row_says,
)
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import too_many
from evosaga.orchestrator.whatsapp.reconciliation.repair_commands import (
    SEEN,
    RepairCommand,
    command_for,
)
from evosaga.orchestrator.whatsapp.reconciliation.rules import (
    AGREE,
    BUSY,
    KeyCell,
    KeySays,
    judge_key,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Key, Row, Snapshot
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS, Policy
from evosaga.sagas.whatsapp.types import CANT_BE_HANDLED, unaddressable


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
    rows, found = snapshot.named(), classify(snapshot)
    names = found.names
    drifts = [_drift(names[name], code, found) for name, code in found.verdicts.items()]
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
        if (one := names.get(name)) and one.whose != "stranger" and not is_busy(snapshot, one)
    ]
    return sorted(
        _without_haste(snapshot, drifts),
        key=lambda d: (str(d.organization_id or "~"), d.where, d.what),
    )


_HIDDEN: Final = "by hand: Evolution lists it without its token, which would show whose it is"

# --- what is wrong, and its repair ------------------------------------------------------------


def _drift(one: Name, code: str, found: Classification) -> Drift:
    keeps = found.kept.get(one.organization_id) if one.organization_id else None
    says = one.row.status if one.row else ""
    unnumbered = row_says(one.row, one.instance) == "unnumbered"
    blanks = {
        "kept": keeps or "none of them",
        "says": f"{says} with another number" if unnumbered else says,
        "seen": SEEN.get(one.sight, ""),
        "name": one.name,
    }
    command = command_for(code, one, found.names)
    servers = _servers_of(one.row, one.instance)
    told = _told(code, one.name, one.organization_id, blanks, command, servers)
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
            KeyCell("busy" if busy else "free", key_says(key, row), "enabled" if row else "none")
        )
        if code not in (AGREE, BUSY):
            command = RepairCommand("key.drop", {"instance_name": name})
            servers = _servers_of(row, snapshot.instances.get(name))
            drifts.append(_told(code, name, organization, command=command, servers=servers))
    return drifts


def key_says(key: Key, row: Row | None) -> KeySays:
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


def _without_haste(snapshot: Snapshot, drifts: Sequence[Drift]) -> list[Drift]:
    """Rows that vanish by the dozen were not deleted one by one: then nothing goes by itself."""
    rowless = sum(drift.what == "rowless" for drift in drifts)
    ours = sum(instance.made_by is not None for instance in snapshot.instances.values())
    if not too_many(rowless, ours + snapshot.ours_beyond):
        return list(drifts)
    many = f"{rowless} of our instances have no row: has the table been emptied?"
    return [replace(d, cause=many, policy="ask") if d.what == "rowless" else d for d in drifts]
