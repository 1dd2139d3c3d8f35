"""What the verb ``recover`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli.output import Output, printable

if TYPE_CHECKING:
    from evosaga.events.log_loss import Comparison
    from evosaga.orchestrator.commands.forgotten import Forgotten, ForgottenSaga, Leftover
    from evosaga.orchestrator.commands.forgotten_commands import ForgottenCommand

_SHOWN: Final = 40


def described(
    known: Comparison, found: Forgotten | None, left: Sequence[Leftover]
) -> dict[str, Any]:
    """The plan as ``--json`` has it. The data of commands is left out: it may be personal."""
    loss = known.loss
    commands = {} if found is None else {one.saga_id for one in found.commands}
    return {
        "went_back": loss
        and {
            "noticed_at": loss.noticed_at and loss.noticed_at.isoformat(),
            "told_up_to": loss.told_up_to,
            "newest": loss.newest,
            "event": loss.event,
            "said": str(loss),
        },
        "epoch": known.epoch,
        "commands": [_command(one) for one in found.commands] if found else [],
        "sagas": [_saga(one, one.saga_id in commands) for one in found.sagas] if found else [],
        "instances": [_instance(one) for one in left],
    }


def _command(one: ForgottenCommand) -> dict[str, Any]:
    return {
        "message_id": one.message.id.decode(),
        "id": one.command.id,
        "type": one.command.type,
        "saga_id": str(one.saga_id or one.command.data.get("saga_id")),
    }


def _saga(one: ForgottenSaga, again: bool) -> dict[str, Any]:
    return {
        "saga_id": str(one.saga_id),
        "saga": one.saga,
        "known": one.known,
        "events": one.events,
        "last": one.last,
        "at": one.at.isoformat(),
        "organization_id": one.organization_id and str(one.organization_id),
        "instance_name": one.instance_name,
        "command": one.command,
        "command_id": one.command_id,
        "what": _fate(one, again),
    }


def _fate(one: ForgottenSaga, again: bool) -> str:
    if one.known:
        return "goes_on"
    if again:
        return "taken_again"
    return "lost" if one.lost else "over"


_FATES: Final = {
    "goes_on": "goes on from what is left of it",
    "taken_again": "its command is taken again",
    "over": "nothing to do",
    "lost": "ask for it again, with the same command id",
}


def _instance(one: Leftover) -> dict[str, Any]:
    return {
        "what": one.what,
        "where": one.where,
        "organization_id": one.organization_id and str(one.organization_id),
        "cause": one.cause,
        "repair": one.repair,
        "does": one.does,
    }


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
        rows = [one | {"does": one["does"] or "ask"} for one in plan["instances"]]
        _table(rows, ("what", "where", "does", "cause", "repair"), ("cause", "repair"), out)


def _counted(rows: Sequence[object]) -> str:
    return str(len(rows))


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], wrap: Sequence[str], out: Output
) -> None:
    shown = rows[:_SHOWN]
    out.table([{name: str(row[name] or "") for name in columns} for row in shown], wrap=wrap)
    if len(rows) > _SHOWN:
        out.note(f"and {len(rows) - _SHOWN} more: --json has all of them")


def tell_end(done: Mapping[str, Any], left: Sequence[Leftover], out: Output) -> None:
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
    if left:
        out.line("left for a person:")
        rows = [_instance(one) for one in left]
        _table(rows, ("what", "where", "cause", "repair"), ("cause", "repair"), out)
