"""Scenes 1 to 3, 6 and 7: an integration is created, paired, refused twice and deleted."""

from __future__ import annotations

import base64
import json
import signal
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from evosaga.events import streams
from evosaga.events.model import StepFailed
from evosaga.orchestrator.cli.render import draw_qr
from evosaga.orchestrator.demo.assertions import eventually
from evosaga.orchestrator.demo.environment import Stage

CREATE_STEPS: Final = ("evolution", "postgres", "cache", "notify", "pair")
DELETE_STEPS: Final = ("mark", "evolution", "postgres", "cache", "notify")


@dataclass(frozen=True, slots=True)
class Integration:
    """What a scene leaves for the next."""

    name: str
    organization_id: str


def wish(name: str, **more: Any) -> dict[str, Any]:
    """The data of a create command for an organization of its own."""
    return {
        "organization_id": str(uuid.uuid4()),
        "clinic_id": str(uuid.uuid4()),
        "name": name,
    } | more


async def create(stage: Stage) -> Integration:
    """Scene 1."""
    stage.show.scene("1. Create: one command in, three stores agree")
    stage.show.say("XADD evosaga:commands … integration.create; a worker picks it up.")
    data = wish("Clínica Sol")
    saga_id = await stage.ask("integration.create", data)
    seen = await stage.watch(saga_id, CREATE_STEPS)
    assert seen.view is not None
    name = str(seen.view.instance_name)
    await there(stage, str(saga_id), name, data)
    raw = await stage.redis.get(f"evosaga:qr:{name}")
    code = json.loads(raw) if raw else {}
    picture = base64.b64decode(str(code.get("base64", "")).partition(",")[2])
    stage.claim(
        picture.startswith(b"\x89PNG") and 0 < await stage.redis.ttl(f"evosaga:qr:{name}") <= 60,
        "The QR code waits in Valkey, as a PNG and as text, for a minute.",
        code,
    )
    stage.show.out.line()
    draw_qr(stage.show.out, code["code"])
    return Integration(name, data["organization_id"])


async def there(stage: Stage, saga_id: str, name: str, data: dict[str, Any]) -> None:
    """Claim that an integration is in all three stores, and that they tell the same."""
    stage.claim(
        name in stage.evolution.live() and name in stage.evolution.rows(),
        f"Evolution has the instance {name}, in memory and in its database.",
        stage.evolution.live(),
    )
    row = await stage.row(name) or {}
    agrees = (str(row.get("id")), str(row.get("organization_id")), row.get("enabled"))
    stage.claim(
        agrees == (saga_id, data["organization_id"], True),
        "Postgres has its row, for that organization, under the id of the saga.",
        row,
    )
    key = await stage.key(name) or {}
    stage.claim(
        {field: key.get(field) for field in data} == data,
        "Valkey has the key that routes its messages, with the same clinic and organization.",
        key,
    )


async def pair(stage: Stage, integration: Integration) -> None:
    """Scene 2."""
    name = integration.name
    stage.show.scene("2. The phone scans the code")
    stage.evolution.pair(name)

    async def open_() -> bool:
        views = (stage.evolution.live()[name], stage.evolution.rows()[name])
        return all(view.state == "open" for view in views)

    await eventually(open_, "Evolution says that the instance is open")
    owner = stage.evolution.rows()[name].owner_jid
    stage.claim(owner is not None, f"Evolution says: open, paired with {owner}.", owner)


async def duplicate(stage: Stage, integration: Integration) -> None:
    """Scene 3."""
    stage.show.scene("3. A second create for the same organization")
    before = await _everything(stage)
    asked = len(stage.evolution.journal.requests())
    data = wish("Clínica Sol, once more") | {"organization_id": integration.organization_id}
    seen = await stage.watch(await stage.ask("integration.create", data))
    view = seen.view
    assert view is not None
    stage.claim(
        view.status == "rejected" and view.existing_instance == integration.name,
        f"Refused: {view.message}. It names the one that is there: {view.existing_instance}.",
        view,
    )
    stage.claim(
        len(stage.evolution.journal.requests()) == asked,
        "Evolution was not asked for anything: its journal has no new line.",
        stage.evolution.journal.requests()[asked:],
    )
    after = await _everything(stage)
    stage.claim(after == before, "Nothing was touched: all three stores are as before.", after)


async def _everything(stage: Stage) -> dict[str, Any]:
    """All that the three stores hold about integrations."""
    rows = await stage.pool.fetch("SELECT * FROM healthcare.integrations ORDER BY id")
    keys = sorted([key async for key in stage.redis.scan_iter("whatsapp:*")])
    return {
        "evolution": {name: view.instance_id for name, view in stage.evolution.rows().items()},
        "postgres": [dict(row) for row in rows],
        "valkey": [(key, await stage.redis.get(key)) for key in keys],
    }


async def delete(stage: Stage, integrations: Sequence[Integration]) -> None:
    """Scene 6."""
    stage.show.scene("6. Delete what is there")
    for integration in integrations:
        data = {"instance_name": integration.name}
        seen = await stage.watch(await stage.ask("integration.delete", data), DELETE_STEPS)
        if any(isinstance(r.event, StepFailed) for r in seen.history):
            stage.show.say(
                "(2.3.7 really answers some deletes with 400; so it looks, and asks again.)"
            )
        left = await stage.left_of(integration.name)
        stage.claim(
            seen.view is not None and seen.view.status == "completed" and not left,
            f"{integration.name} is gone from Evolution, Postgres and Valkey.",
            left or seen.view,
        )


async def empty(stage: Stage) -> None:
    """Scene 7."""
    stage.show.scene("7. The three stores, side by side")
    all_events = await stage.pool.fetchval("SELECT count(*) FROM evosaga.saga_events")

    async def told() -> bool:
        return bool(await stage.redis.xlen(streams.EVENTS) >= all_events)

    await eventually(told, "every event is on the stream")
    journal = [entry.applied for entry in stage.evolution.journal]
    born, gone = journal.count("created"), journal.count("removed")
    rows = await stage.pool.fetchval("SELECT count(*) FROM healthcare.integrations")
    keys = [key async for key in stage.redis.scan_iter("whatsapp:instance:*")]
    codes = [key async for key in stage.redis.scan_iter("evosaga:qr:*")]
    live, stored = len(stage.evolution.live()), len(stage.evolution.rows())
    statuses = await stage.pool.fetch(
        "SELECT status, count(*) FROM evosaga.sagas GROUP BY status ORDER BY status"
    )
    ended = ", ".join(f"{row['count']} {row['status']}" for row in statuses)
    on_stream = await _distinct_events(stage)
    _draw(
        stage,
        (
            (
                "Evolution",
                f"{live} instances in memory, {stored} in its database",
                f"{born} made, {gone} removed",
            ),
            ("Postgres", f"{rows} rows in healthcare.integrations", f"sagas: {ended}"),
            (
                "Valkey",
                f"{len(keys)} routing keys, {len(codes)} QR codes",
                f"events: {on_stream} on the stream, {all_events} in Postgres",
            ),
        ),
    )
    stage.claim(not (live or stored or rows or keys or codes), "All three are empty.", keys)
    stage.claim(born == gone, f"Evolution's journal agrees: {born} made, {gone} removed.", journal)
    open_ = [row for row in statuses if row["status"] in ("running", "compensating", "failed")]
    stage.claim(not open_, "Every saga has ended, and none is parked.", open_)
    stage.claim(
        on_stream == all_events,
        f"All {all_events} events of the log were told on the stream evosaga:events.",
        on_stream,
    )
    backlog = await streams.backlog(stage.redis)
    stage.claim(
        backlog is not None and (backlog.pending, backlog.dead) == (0, 0),
        "No command is left over: none pending, no dead letter.",
        backlog,
    )
    await _curtain(stage)


async def _distinct_events(stage: Stage) -> int:
    """At least once, so repeated ones don't count."""
    entries: Any = await stage.redis.xrange(streams.EVENTS)
    return len({json.loads(fields[b"data"])["id"] for _, fields in entries})


def _draw(stage: Stage, rows: Sequence[tuple[str, str, str]]) -> None:
    out = stage.show.out
    if not out.terminal:
        for store, holds, told in rows:
            out.line(f"  {store:<10} {holds:<48} {told}")
        return
    from rich import box
    from rich.table import Table

    table = Table("store", "what it holds", "what it tells", box=box.ROUNDED)
    for row in rows:
        table.add_row(*row)
    out.console.print(table)


async def _curtain(stage: Stage) -> None:
    survivors = [worker for worker in stage.workers if worker.process.poll() is None]
    for worker in survivors:
        worker.process.send_signal(signal.SIGTERM)
    codes = [await worker.ended() for worker in survivors]
    names = ", ".join(worker.name for worker in survivors)
    stage.claim(
        bool(codes) and set(codes) == {0},
        f"Worker {names}, asked with SIGTERM, finished what it had and left with exit code 0.",
        codes,
    )
