"""What the verb ``reconcile`` prints: drifts, what was not compared, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from evosaga.orchestrator.cli.output import Output, printable

_SOME: Final = 10


def report(out: Output, told: Mapping[str, Any]) -> None:
    """What is wrong; still wrong, after repairs. ``told``: as ``--json`` has it."""
    if out.json:
        out.data(dict(told))
        return
    unseen, busy, strangers = told.get("not_looked_at", {}), told["busy"], told["strangers"]
    tell_unseen(unseen, out)
    if busy:
        them = "1 instance" if busy == 1 else f"{busy} instances"
        out.note(f"sagas are at work for {them}, not compared: evosaga list")
    if strangers:
        some = ", ".join(map(printable, strangers[:_SOME]))
        more = "" if len(strangers) <= _SOME else ", …"
        one = "1 instance of an unknown owner is"
        them = one if len(strangers) == 1 else f"{len(strangers)} instances of unknown owners are"
        out.note(f"{them} left alone: {some}{more}")
    if not told["drifts"]:
        out.line("what was seen agrees" if unseen or busy else "the stores agree")
        return
    if "repairs" in told:
        out.line("left:")
    draw_described(told["drifts"], out)


def advise(out: Output, drifts: Sequence[Mapping[str, Any]], *, fixed: bool, one: bool) -> None:
    """How to go on; ``fixed``: with ``--fix``, ``one``: for one organization."""
    policies = {drift["policy"] for drift in drifts}
    if "auto" in policies and not fixed:
        out.note("repair what is marked auto: evosaga reconcile --fix")
    if "ask" in policies and not (fixed and one):
        owned = next((d for d in drifts if d["policy"] == "ask" and d["organization_id"]), None)
        if owned is not None:
            asked = f"evosaga reconcile --organization-id {owned['organization_id']} --fix"
            out.note(f"what is marked ask is repaired for one organization: {asked}")


def tell_unseen(unseen: Mapping[str, str], out: Output) -> None:
    """The servers of which nothing can be said; ``""`` where they are in the reason."""
    for server, why in sorted(unseen.items()):
        if server:
            out.problem(f"the Evolution server {printable(server)} was not looked at: {why}")
        else:
            out.problem(f"not everything was looked at: {why}")


def draw_described(drifts: Sequence[Mapping[str, Any]], out: Output) -> None:
    """The drifts, as ``--json`` has them, as a table."""
    columns = ("what", "where", "policy", "cause", "repair")
    rows = [{name: str(drift[name]) for name in columns} for drift in drifts]
    out.table(rows, wrap=("cause", "repair"))
