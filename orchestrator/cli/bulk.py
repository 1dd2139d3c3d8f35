"""``replay`` and ``cancel`` of many sagas: choose, confirm, publish in portions, watch, report."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.integrations import new_id
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.params import Selection
from evosaga.orchestrator.cli.show import find, moment

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.queries.sagas import SagaView

_WINDOW: Final = 200
"""Commands that may wait for a worker at once, so that others get through as well."""
_POLL: Final = 0.2
_PAGE: Final = 500
_FILTERS: Final = ("status", "saga", "since", "code", "organization_id")


@dataclass(slots=True)
class Wish:
    """One command, and what has become of it. ``status`` is that of ``target``."""

    saga_id: UUID
    command_id: str
    message_id: str = ""
    target: UUID | None = None
    """The saga to watch: the old one, or the one that started anew."""
    status: str = "waiting"
    code: str | None = None
    message: str | None = None

    @property
    def obeyed(self) -> bool:
        """Whether a worker has dealt with it."""
        return self.status != "waiting"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.status not in ("waiting", "running", "compensating")


async def chosen(pool: Pool, selection: Selection) -> list[SagaView]:
    """The sagas that are named or that fit the filter, oldest first. Raises ``CliError``."""
    from evosaga.orchestrator.queries import sagas as queries

    if selection.references:
        found = [await find(pool, reference) for reference in selection.references]
        return list({view.saga_id: view for view in found}.values())
    organization = selection.organization_id
    wanted = queries.Filter(
        status=selection.status,
        saga=selection.saga,
        organization_id=UUID(organization) if organization else None,
        since=moment(selection.since, datetime.now(UTC)) if selection.since else None,
        code=selection.code,
    )
    sagas: list[SagaView] = []
    cursor: str | None = None
    while True:
        page, cursor = await queries.list_sagas(pool, wanted, limit=_PAGE, cursor=cursor)
        sagas += page
        if cursor is None:
            return sagas[::-1]


async def steer_all(
    pool: Pool,
    redis: Redis,
    kind: str,
    sagas: Sequence[SagaView],
    selection: Selection,
    out: Output,
) -> list[Wish]:
    """Publish a command for each saga and watch them, until all are over or the time is."""
    from evosaga.events import streams
    from evosaga.orchestrator.cli.render import progress_bar

    wishes = [Wish(view.saga_id, new_id()) for view in sagas]
    deadline = time.monotonic() + selection.patience
    published, letters_after = 0, "0"
    with progress_bar(kind.rpartition(".")[2], out) as progress:
        while True:
            outstanding = sum(not wish.obeyed for wish in wishes[:published])
            batch = wishes[published : published + _WINDOW - outstanding]
            if batch:
                bodies = [_body(kind, wish, selection.reason) for wish in batch]
                ids = await streams.publish_commands(redis, bodies)
                for wish, id_ in zip(batch, ids, strict=True):
                    wish.message_id = id_
                if not published:  # both streams take their ids from the same clock
                    letters_after = f"{int(ids[0].partition('-')[0]) - 1}"
                published += len(batch)
            if selection.no_wait and published == len(wishes):
                return wishes
            letters_after = await _look_for_letters(redis, wishes, letters_after)
            await _look(pool, [wish for wish in wishes[:published] if not wish.over])
            progress(sum(wish.over for wish in wishes), len(wishes), _sum(wishes))
            if all(wish.over for wish in wishes) or time.monotonic() >= deadline:
                return wishes
            await asyncio.sleep(_POLL)


def _body(kind: str, wish: Wish, reason: str | None) -> dict[str, Any]:
    data = {"saga_id": str(wish.saga_id)} | ({"reason": reason} if reason else {})
    return {"id": wish.command_id, "type": kind, "data": data}


async def _look(pool: Pool, wishes: Sequence[Wish]) -> None:
    """What has become of them, in one query."""
    ids = [UUID(wish.command_id) for wish in wishes]
    rows = await pool.fetch(_LOOK, [wish.saga_id for wish in wishes], ids)
    by_id = {str(row["command_id"]): row for row in rows}
    for wish in wishes:
        row = by_id.get(wish.command_id)
        if row is not None:
            wish.target, wish.status = row["saga_id"], row["status"]
            wish.code, wish.message = row["code"], row["message"]


async def _look_for_letters(redis: Redis, wishes: Sequence[Wish], after: str) -> str:
    """Note who was refused, and take the letters that say no more than the report will."""
    from evosaga.events import dead_letters
    from evosaga.orchestrator.commands.control import REFUSALS

    refusals, after = await dead_letters.since(redis, after)
    by_message = {wish.message_id: wish for wish in wishes if wish.message_id}
    read = []
    for refusal in refusals:
        if wish := by_message.get(refusal.message_id):
            wish.status, wish.code, wish.message = "refused", refusal.code, refusal.message
            if refusal.code in REFUSALS:
                read.append(refusal.id)
    await dead_letters.delete(redis, read)
    return after


def _sum(wishes: Sequence[Wish]) -> str:
    counts = Counter(_outcome(wish) for wish in wishes)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())


def _outcome(wish: Wish) -> str:
    """In the words of the report."""
    match wish.status:
        case "failed":
            return "still failed"
        case "rejected":
            return "refused"
        case "running" | "compensating":
            return "under way"
    return wish.status


def report(kind: str, wishes: Sequence[Wish], wanted: str, out: Output) -> int:
    """Say how it ended for each; 0 only if all of them ended as wanted."""
    left = [wish for wish in wishes if wish.status != wanted]
    if out.json:
        out.data(
            {
                "asked": kind,
                "outcomes": dict(Counter(_outcome(wish) for wish in wishes)),
                "sagas": [_document(wish) for wish in wishes],
            }
        )
    else:
        out.line(f"{len(wishes)} saga{'' if len(wishes) == 1 else 's'}: {_sum(wishes)}")
        if left:
            out.table([_row(wish) for wish in left], wrap=("why",))
        if any(wish.status == "waiting" for wish in wishes):
            out.problem("no worker has taken some of them yet; they are kept: is a worker running?")
    return UNFINISHED if left else DONE


def _document(wish: Wish) -> dict[str, Any]:
    anew = wish.target if wish.target != wish.saga_id else None
    return {
        "saga_id": wish.saga_id,
        "anew": anew,
        "outcome": _outcome(wish),
        "status": wish.status if wish.target else None,
        "code": wish.code,
        "message": wish.message,
    }


def _row(wish: Wish) -> dict[str, str]:
    return {
        "outcome": _outcome(wish),
        "saga id": str(wish.saga_id),
        "code": wish.code or "",
        "why": wish.message or "",
    }


def check_selection(verb: str, selection: Selection) -> None:
    """Sagas are named, or chosen by a filter with a status; never all by accident."""
    filtered = [name for name in _FILTERS if getattr(selection, name)]
    if selection.references and filtered:
        option = filtered[0].replace("_", "-")
        raise CliError(WRONG, f"name sagas or choose them by --{option}, not both")
    if not selection.references and not selection.status:
        raise CliError(WRONG, f"which sagas? evosaga {verb} ID…, or evosaga {verb} --status …")


_LOOK: Final = """
SELECT wish.command_id, saga.saga_id, saga.status, saga.code, saga.message
FROM unnest($1::uuid[], $2::uuid[]) AS wish (saga_id, command_id)
CROSS JOIN LATERAL (
    SELECT * FROM evosaga.sagas WHERE saga_id = wish.command_id
    UNION ALL
    SELECT * FROM evosaga.sagas WHERE saga_id = wish.saga_id AND EXISTS (
        SELECT FROM evosaga.saga_events AS event
        WHERE event.saga_id = wish.saga_id AND event.causation_id = wish.command_id::text)
) AS saga
"""
