"""Whether a look at a server can be believed. Pure."""

from typing import Final

from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Memory, Row, Snapshot
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

_FEW: Final = 3
_SHARE: Final = 0.2
"""More than so many, or such a share, at once is no drift but a look that went wrong."""


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


def _expected(snapshot: Snapshot, row: Row) -> bool:
    """Whether Evolution should have an instance for this row."""
    return (
        row.enabled
        and row.status != "deleting"
        and row.flag not in ("missing", "foreign")
        and row.instance_name not in snapshot.busy_names
        and row.organization_id not in snapshot.busy_organizations
    )
