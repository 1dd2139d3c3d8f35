"""``create``, ``delete``, ``replay`` and ``cancel`` over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from evosaga.orchestrator.cli import bulk
from evosaga.orchestrator.cli.confirm import agreed_to_delete, confirmed
from evosaga.orchestrator.cli.errors import DONE, INTERRUPTED, UNFINISHED
from evosaga.orchestrator.cli.integrations import Asking, new_id
from evosaga.orchestrator.cli.params import Selection
from evosaga.orchestrator.cli.remote import reading
from evosaga.orchestrator.cli.remote.session import connect
from evosaga.orchestrator.client import EvosagaError

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target
    from evosaga.orchestrator.client import Client, Saga
    from evosaga.orchestrator.queries.sagas import SagaView

_ASKING: Final = Asking()
_ALL: Final = Selection()
_AT_ONCE: Final = 8
_POLL: Final = 0.5


def create(
    *,
    asking: Asking = _ASKING,
    target: Target,
    out: Output,
    **given: str | None,
) -> int:
    """Ask for an integration, and show the QR code once it is there."""
    return interruptible(_ask(target, "integration.create", given, asking, out), out)


def delete(
    instance_name: str,
    /,
    *,
    organization_id: str | None = None,
    yes: bool = False,
    asking: Asking = _ASKING,
    target: Target,
    out: Output,
) -> int:
    """Ask for the end of an integration."""
    if not yes and not agreed_to_delete(instance_name, out):
        return UNFINISHED
    given = {"instance_name": instance_name, "organization_id": organization_id}
    return interruptible(_ask(target, "integration.delete", given, asking, out), out)


async def _ask(
    target: Target, type_: str, given: dict[str, str | None], asking: Asking, out: Output
) -> int:
    data = {name: value for name, value in given.items() if value is not None}
    command_id = asking.id or new_id()
    async with connect(target) as client:
        submitted = await client.command(type_, data, id=command_id)
        if asking.no_wait:
            return left_alone(command_id, submitted.saga_id, out)
        return await watched(client, submitted.saga_id, asking.timeout, "completed", out)


def replay(
    *references: str,
    plan: bool = False,
    status: str | None = None,
    selection: Selection = _ALL,
    target: Target,
    out: Output,
) -> int:
    """Give sagas another try, or say what that would do."""
    chosen = replace(selection, references=references, status=status)
    bulk.check_selection("replay", chosen)
    if plan:
        return asyncio.run(_plans(target, chosen, out))
    return interruptible(_steer(target, "replay", "completed", chosen, out), out)


def cancel(
    *references: str,
    status: str | None = None,
    selection: Selection = _ALL,
    target: Target,
    out: Output,
) -> int:
    """Stop sagas and undo them."""
    chosen = replace(selection, references=references, status=status)
    bulk.check_selection("cancel", chosen)
    return interruptible(_steer(target, "cancel", "compensated", chosen, out), out)


async def _plans(target: Target, selection: Selection, out: Output) -> int:
    from evosaga.orchestrator.cli.replay_plan import tell_plans
    from evosaga.orchestrator.commands.replay_plan import PlannedStep, ReplayPlan

    async def look(client: Client, view: SagaView) -> ReplayPlan:
        told = await client.get(f"/sagas/{view.saga_id}/replay-plan")
        lines = tuple(PlannedStep(**line) for line in told["steps"])
        return ReplayPlan(told["headline"], told["allowed"], lines, told["code"], told["anew"])

    async with connect(target) as client:
        sagas = await _chosen(client, selection)
        plans = await _each(sagas, lambda view: look(client, view))
    return tell_plans(sagas, plans, out, single=len(selection.references) == 1)


async def _steer(target: Target, verb: str, wanted: str, selection: Selection, out: Output) -> int:
    async with connect(target) as client:
        if len(selection.references) == 1:
            command_id = new_id()
            saga = await _send(client, verb, selection.references[0], selection, command_id)
            if selection.no_wait:
                return left_alone(command_id, saga.saga_id, out)
            return await watched(client, saga.saga_id, selection.patience, wanted, out)
        return await _steer_many(client, verb, wanted, selection, out)


async def _send(
    client: Client, verb: str, reference: str | UUID, selection: Selection, command_id: str
) -> Saga:
    steer = client.replay if verb == "replay" else client.cancel
    return await steer(reference, selection.reason, id=command_id)


async def _steer_many(
    client: Client, verb: str, wanted: str, selection: Selection, out: Output
) -> int:
    from evosaga.orchestrator.cli.render import progress_bar

    sagas = await _chosen(client, selection)
    if not sagas:
        out.note("no saga fits, so there is nothing to do")
        return bulk.report(f"saga.{verb}", [], wanted, out) if out.json else DONE
    if not selection.yes and not confirmed(f"{verb} {len(sagas)} sagas?", out):
        out.note("nothing was done")
        return UNFINISHED
    wishes = [bulk.Wish(view.saga_id, new_id()) for view in sagas]

    async def send(wish: bulk.Wish) -> None:
        try:
            saga = await _send(client, verb, wish.saga_id, selection, wish.command_id)
        except EvosagaError as error:
            if error.code in ("unreachable", "unauthorized", "forbidden"):
                raise
            wish.status, wish.code, wish.message = "refused", error.code, error.message
        else:
            wish.target, wish.status = saga.saga_id, saga.status

    async def look(wish: bulk.Wish) -> None:
        saga = await client.status(wish.target or wish.saga_id)
        wish.status, wish.code, wish.message = saga.status, saga.code, saga.message

    deadline = time.monotonic() + selection.patience
    with progress_bar(verb, out) as progress:
        await _each(wishes, send)
        if selection.no_wait:
            out.note(f"gave {len(wishes)} commands; see: evosaga list")
            return DONE
        while open_ := [wish for wish in wishes if not wish.over]:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(_POLL)
            await _each(open_, look)
            progress(sum(wish.over for wish in wishes), len(wishes), "")
    return bulk.report(f"saga.{verb}", wishes, wanted, out)


async def _chosen(client: Client, selection: Selection) -> list[SagaView]:
    """The sagas that are named or that fit the filter, oldest first."""
    from datetime import UTC, datetime

    from evosaga.orchestrator.cli.show import moment

    if selection.references:
        found = await _each(selection.references, client.status)
        views = map(reading.view_of, found)
        return list({view.saga_id: view for view in views}.values())
    filters = {
        "status": selection.status,
        "saga": selection.saga,
        "organization_id": selection.organization_id,
        "code": selection.code,
        "since": moment(selection.since, datetime.now(UTC)) if selection.since else None,
    }
    page, _ = await reading.page_of(client, 1_000_000, None, filters)
    return page[::-1]


async def watched(
    client: Client,
    saga_id: UUID,
    timeout: float,
    wanted: str,
    out: Output,
    result: Callable[[], Awaitable[dict[str, Any] | None]] | None = None,
) -> int:
    """Watch a saga until it is over; the exit code. ``result`` asks for what it came to."""
    from evosaga.orchestrator.cli.render import timeline
    from evosaga.orchestrator.cli.result import told_outcome

    began = time.monotonic()
    with timeline(out) as watch:
        seen = await reading.follow(client, saga_id, watch, out, timeout=timeout)
    spent, view, code = time.monotonic() - began, seen.view, None
    if view is not None and (view.saga, view.status) == ("create-integration", "completed"):
        code = await _qr_code(client, str(view.instance_name))
    came = await result() if result and view is not None and view.status == "completed" else None
    return told_outcome(seen, code, spent, str(saga_id), out, wanted=wanted, result=came)


async def _qr_code(client: Client, instance_name: str) -> dict[str, Any] | None:
    from dataclasses import asdict

    try:
        return asdict(await client.qr_code(instance_name))
    except EvosagaError:
        return None  # a channel without one, or already paired: `evosaga qr` says which


async def _each(things: Sequence[Any], work: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    """The work on each thing, a few at a time."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(thing: Any) -> Any:
        async with gate:
            return await work(thing)

    return await asyncio.gather(*map(one, things))


def left_alone(command_id: str, saga_id: UUID, out: Output) -> int:
    """Say how to find out later, for those who don't wait."""
    if out.json:
        out.data({"saga_id": str(saga_id), "command_id": command_id})
    else:
        out.line(f"accepted {command_id}; see what becomes of it: evosaga status {saga_id}")
    return DONE


def interruptible(work: Coroutine[Any, Any, int], out: Output) -> int:
    """Do it; Ctrl-C ends the watching, not the saga."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        out.problem("stopped watching; what was accepted goes on: evosaga list")
        return INTERRUPTED
