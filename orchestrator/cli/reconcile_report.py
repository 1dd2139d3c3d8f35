"""What the verb ``reconcile`` prints: drifts, what was not compared, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from evosaga.orchestrator.cli.output import Output, printable

if TYPE_CHECKING:
    from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift

_SOME: Final = 10


class NotCompared(NamedTuple):
    """What a look says nothing of, so that every instance on the servers is counted."""

    unseen: Mapping[str, str] = {}
    """Evolution servers that could not be looked at, and why."""
    strangers: Sequence[str] = ()
    """Instances that are nobody's we know of."""
    busy: int = 0
    """Instances that sagas are at work for."""


def report(
    out: Output,
    drifts: Sequence[Drift],
    rest: NotCompared,
    repaired: Mapping[str, Any] | None = None,
) -> None:
    """What is wrong; still wrong, after repairs (``repaired``: what ``--json`` says of them)."""
    if out.json:
        told: dict[str, Any] = {"drifts": [described(drift) for drift in drifts]}
        told |= repaired or {}
        told |= {"not_looked_at": dict(rest.unseen)} if rest.unseen else {}
        out.data(told | {"strangers": list(rest.strangers), "busy": rest.busy})
        return
    tell_unseen(rest.unseen, out)
    if rest.busy:
        them = "1 instance" if rest.busy == 1 else f"{rest.busy} instances"
        out.note(f"sagas are at work for {them}, not compared: evosaga list")
    if rest.strangers:
        some = ", ".join(map(printable, rest.strangers[:_SOME]))
        more = "" if len(rest.strangers) <= _SOME else ", …"
        number = len(rest.strangers)
        one = "1 instance of an unknown owner is"
        them = one if number == 1 else f"{number} instances of unknown owners are"
        out.note(f"{them} left alone: {some}{more}")
    if not drifts:
        partly = rest.unseen or rest.busy
        out.line("what was seen agrees" if partly else "the stores agree")
        return
    if repaired:
        out.line("left:")
    draw(drifts, out)


def advise(out: Output, drifts: Sequence[Drift], *, fixed: bool, one: bool) -> None:
    """How to go on; ``fixed``: with ``--fix``, ``one``: for one organization."""
    policies = {drift.policy for drift in drifts}
    if "auto" in policies and not fixed:
        out.note("repair what is marked auto: evosaga reconcile --fix")
    if "ask" in policies and not (fixed and one):
        owned = next((d for d in drifts if d.policy == "ask" and d.organization_id), None)
        if owned is not None:
            asked = f"evosaga reconcile --organization-id {owned.organization_id} --fix"
            out.note(f"what is marked ask is repaired for one organization: {asked}")


def tell_unseen(unseen: Mapping[str, str], out: Output) -> None:
    """The servers of which nothing can be said."""
    for server, why in sorted(unseen.items()):
        out.problem(f"the Evolution server {printable(server)} was not looked at: {why}")


def draw(drifts: Sequence[Drift], out: Output) -> None:
    """The drifts as a table."""
    draw_described([described(drift) for drift in drifts], out)


def draw_described(drifts: Sequence[Mapping[str, Any]], out: Output) -> None:
    """The same of drifts as ``--json`` has them."""
    columns = ("what", "where", "policy", "cause", "repair")
    rows = [{name: str(drift[name]) for name in columns} for drift in drifts]
    out.table(rows, wrap=("cause", "repair"))


def described(drift: Drift) -> dict[str, Any]:
    """A drift as ``--json`` has it."""
    from evosaga.orchestrator.whatsapp.reconciliation import reconciler

    return reconciler.described(drift)
