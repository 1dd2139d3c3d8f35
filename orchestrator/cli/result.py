"""How a saga ended: for people with what to do next, for programs as one JSON document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.cli.errors import DONE, UNFINISHED
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.show import document
from evosaga.orchestrator.queries.timeline import steps_of, undone
from evosaga.orchestrator.whatsapp.explain import note

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.orchestrator.cli.follow import Seen
    from evosaga.orchestrator.queries.sagas import SagaView


async def tell_outcome(
    seen: Seen,
    redis: Redis,
    seconds: float,
    saga_id: str,
    out: Output,
    *,
    wanted: str = "completed",
) -> int:
    """Say how it ended; the exit code. ``wanted`` is the status that counts as done."""
    view = seen.view
    code = await _qr_code(redis, view) if view is not None and view.status == "completed" else None
    return told_outcome(seen, code, seconds, saga_id, out, wanted=wanted)


def told_outcome(
    seen: Seen,
    code: dict[str, Any] | None,
    seconds: float,
    saga_id: str,
    out: Output,
    *,
    wanted: str = "completed",
    result: dict[str, Any] | None = None,
) -> int:
    """The same with the QR code and the result at hand, if there are any."""
    view = seen.view
    done = view is not None and view.status == wanted
    result = result if result is not None else _result(seen)
    if out.json:
        out.data(
            (document(view) if view else {"saga_id": saga_id, "status": None, "over": False})
            | {
                "success": done,
                "seconds": round(seconds, 3),
                "qr_code": code,
                "steps": [step.as_dict() for step in steps_of(seen.history, note=note)],
                "undone": undone(seen.history),
            }
            | ({"result": result} if result is not None else {})
        )
    elif view is not None and view.status == "completed":
        out.line(_completed(view, seconds))
        if result is not None:
            out.line(printable(", ".join(f"{name}: {value}" for name, value in result.items())))
        if code:
            _show_qr(code, str(view.instance_name), out)
    elif done:
        out.line(f"{_undone(seen)} Nothing is left behind.")
    if not done:
        out.problem(_not_done(seen, seconds, saga_id))
    return DONE if done else UNFINISHED


def _completed(view: SagaView, seconds: float) -> str:
    what = {"create-integration": "is there", "delete-integration": "is gone"}.get(view.saga, "")
    return f"completed in {seconds:.1f} s: {view.instance_name or view.saga} {what}".rstrip()


def _result(seen: Seen) -> dict[str, Any] | None:
    """What the saga came to, where its definition says; None: it does not, or is not known here."""
    from evosaga.orchestrator import app
    from evosaga.orchestrator.engine.results import BadResult, result_of
    from evosaga.orchestrator.engine.state import replay

    view = seen.view
    saga = app.registry().find(view.saga, view.version) if view is not None else None
    if view is None or view.status != "completed" or saga is None or saga.result is None:
        return None
    try:
        found = result_of(saga, replay(one.event for one in seen.history))
    except BadResult:
        return None
    return found.model_dump(mode="json") if found is not None else None


def _not_done(seen: Seen, seconds: float, saga_id: str) -> str:
    """What happened instead, and what a person can do about it."""
    view = seen.view
    if view is None:
        return (
            f"no worker has taken the command within {seconds:.0f} s; it is kept, and a worker "
            f"will: evosaga status {saga_id}"
        )
    match view.status:
        case "completed":
            return "it completed; it could not be stopped any more"
        case "rejected":
            return f"refused, and nothing was touched: {view.message}.{_cure(view)}"
        case "compensated":
            return (
                f"rolled back: {view.message}. {_undone(seen)} Nothing is left behind. "
                f"More: evosaga why {view.saga_id}"
            )
        case "failed":
            return (
                f"parked at step {view.step}: {view.message}. When the cause is mended: "
                f"evosaga replay {view.saga_id}, or to undo it: evosaga cancel {view.saga_id}"
            )
    where = f"at step {view.step} " if view.step else ""
    return (
        f"still {view.status} {where}after {seconds:.0f} s; it goes on by itself: "
        f"evosaga status {view.saga_id}"
    )


def _cure(view: SagaView) -> str:
    existing = view.existing_instance
    match view.code:
        case "integration_exists" if existing:
            return f" It is {existing}; to replace it, first: evosaga delete {existing}"
        case "in_progress" if existing:
            return f" It is about {existing}; see how far it is: evosaga status {existing}"
        case "name_taken":
            return " Choose another --instance-name, or leave it out"
        case "not_found":
            return " See what there is: evosaga list --status completed"
    return ""


def _undone(seen: Seen) -> str:
    steps = undone(seen.history)
    return f"Undone, in this order: {', '.join(steps)}." if steps else "There was nothing to undo."


async def _qr_code(redis: Redis, view: SagaView) -> dict[str, Any] | None:
    """The QR code, while it is fresh; it lives in Redis alone and for a minute."""
    if view.saga != "create-integration":
        return None
    raw = await redis.get(f"evosaga:qr:{view.instance_name}")
    return dict(json.loads(raw)) if raw else None


def _show_qr(code: dict[str, Any], instance_name: str, out: Output) -> None:
    if code.get("pairing_code"):
        out.line(printable(f"pairing code: {code['pairing_code']}"))
    if out.terminal and code.get("code"):
        from evosaga.orchestrator.cli.render import draw_qr

        out.line("scan this with WhatsApp on the phone (Linked devices), within a minute:")
        draw_qr(out, code["code"])
    else:
        out.line(f"pair its phone: evosaga qr {instance_name}")
