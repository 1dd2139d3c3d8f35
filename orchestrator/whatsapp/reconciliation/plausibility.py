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
    should = [row for row in here if expected(snapshot, row)]
    missing = [row for row in should if row.instance_name not in snapshot.instances]
    beyond, missing_beyond = snapshot.beyond.get(server, (0, 0))
    number, of = len(missing) + missing_beyond, len(should) + beyond
    if not too_many(number, of):
        return None
    gone: tuple[Memory, ...] = ("absent", "half", "foreign")
    if not missing_beyond and all(snapshot.memory.get(r.instance_name) in gone for r in missing):
        return None
    return (
        f"{number} of {of} integrations are not in Evolution's list, and asked "
        "for by name not all of them are gone: the list is not to be believed"
    )


def too_many(missing: int, of: int) -> bool:
    """Whether that many can hardly have vanished one by one."""
    return missing > max(_FEW, _SHARE * of)


def expected(snapshot: Snapshot, row: Row) -> bool:
    """Whether Evolution should have an instance for this row."""
    return (
        row.enabled
        and row.status != "deleting"
        and row.flag not in ("missing", "foreign")
        and row.instance_name not in snapshot.busy_names
        and row.organization_id not in snapshot.busy_organizations
    )
