"""What the verb ``recover`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from evosaga.orchestrator.cli.output import Output, printable

_SHOWN: Final = 40


_FATES: Final = {
    "goes_on": "goes on from what is left of it",
    "taken_again": "its command is taken again",
    "over": "nothing to do",
    "lost": "ask for it again, with the same command id",
}
_FIRST: Final = "its command is taken again first, and a create keeps it"


def draw(plan: Mapping[str, Any], out: Output) -> None:
    """The plan as tables."""
    loss = plan["went_back"]
    out.line(f"the log went back: {loss['said']}" if loss else "the log has what was published")
    if plan["commands"]:
        out.line(f"acknowledged and not in Postgres: {_counted(plan['commands'])}")
        _table(plan["commands"], ("type", "id", "saga_id"), (), out)
    if plan["sagas"]:
        out.line(f"published and not in Postgres: events of {_counted(plan['sagas'])}")
        rows = [one | {"then": _FATES[one["what"]]} for one in plan["sagas"]]
        columns = ("saga", "saga_id", "events", "last", "command_id", "then")
        _table(rows, columns, ("then",), out)
    if plan["instances"]:
        out.line(f"outside, and in no store of ours: {_counted(plan['instances'])}")
        again = {one["instance_name"] for one in plan["sagas"] if one["what"] == "taken_again"}
        rows = [_planned(one, one["where"] in again) for one in plan["instances"]]
        _table(rows, ("what", "where", "does", "cause", "repair"), ("cause", "repair"), out)


def _planned(one: Mapping[str, Any], again: bool) -> Mapping[str, Any]:
    """An instance with what becomes of it. A command that is taken again finds its own first."""
    if not again:
        return {**one, "does": one["does"] or "ask"}
    return {**one, "does": "command", "repair": f"{_FIRST}; if it is left then: {one['repair']}"}


def _counted(rows: Sequence[object]) -> str:
    return str(len(rows))


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], wrap: Sequence[str], out: Output
) -> None:
    shown = rows[:_SHOWN]
    out.table([{name: str(row[name] or "") for name in columns} for row in shown], wrap=wrap)
    if len(rows) > _SHOWN:
        out.note(f"and {len(rows) - _SHOWN} more: --json has all of them")


def tell_end(done: Mapping[str, Any], out: Output) -> None:
    """What was done, and what a person has to decide."""
    for one in done["repairs"]:
        why = f": {printable(one['message'])}" if one["message"] else ""
        out.line(f"{one['does']} {one['where']}: {one['status']}{why}")
    if done["begun"] is not None:
        out.line(f"epoch {done['begun']}: events are published, and maintenance goes on")
    if done["lost_sagas"]:
        number = len(done["lost_sagas"])
        them = "1 saga is lost" if number == 1 else f"{number} sagas are lost"
        out.note(f"{them}, as said above: ask for it again with the same command id")
    if done["left"]:
        out.line("left for a person:")
        _table(done["left"], ("what", "where", "cause", "repair"), ("cause", "repair"), out)
