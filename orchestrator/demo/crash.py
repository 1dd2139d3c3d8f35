"""Scene 5: a worker is killed with its request on the way, and another one finishes the saga."""

from __future__ import annotations

import asyncio
import signal
from datetime import datetime
from uuid import UUID

from evosaga.events.model import Recorded, StepStarted, StepSucceeded
from evosaga.orchestrator.cli.integrations import new_id
from evosaga.orchestrator.demo.assertions import NotSo, eventually
from evosaga.orchestrator.demo.environment import Stage, Worker, pid_of
from evosaga.orchestrator.demo.scenes import CREATE_STEPS, Integration, there, wish


async def kill_minus_nine(stage: Stage) -> Integration:
    """Kill the saga's worker when the instance is made and the answer has not arrived."""
    stage.show.scene("5. kill -9 in the middle of a create")
    saga_id = new_id()
    name = f"wa-{saga_id}"
    stage.evolution.arm("slow_after", operation="create", name=name, seconds=1.5)
    stage.show.say("Evolution makes the instance at once, but answers late. Before it answers:")
    data = wish("Clínica Vento")
    await stage.ask("integration.create", data, saga_id)
    seen, (victim, killed_at) = await asyncio.gather(
        stage.watch(UUID(saga_id), CREATE_STEPS), _kill_the_driver(stage, saga_id, name)
    )
    status = await victim.ended()
    stage.claim(status == -signal.SIGKILL, f"Worker {victim.name} was killed with SIGKILL.", status)
    _claim_take_over(stage, seen.history, victim, killed_at)
    stage.claim(
        seen.view is not None and seen.view.status == "completed",
        "The saga completed, as if nothing had happened.",
        seen.view,
    )
    await _claim_exactly_one(stage, name, seen.history)
    await there(stage, saga_id, name, data)
    return Integration(name, data["organization_id"])


async def _kill_the_driver(stage: Stage, saga_id: str, name: str) -> tuple[Worker, datetime]:
    """SIGKILL the worker that drives the saga, once Evolution has made the instance."""

    async def made() -> bool:
        return stage.instance(name)

    await eventually(made, "the instance is made")
    owner = await stage.pool.fetchval(
        "SELECT owner FROM evosaga.sagas WHERE saga_id = $1", UUID(saga_id)
    )
    victim = next((w for w in stage.workers if w.process.pid == pid_of(str(owner))), None)
    if victim is None:
        raise NotSo(f"one of our workers drives the saga  (found: {owner})")
    victim.process.kill()
    killed_at: datetime = await stage.pool.fetchval("SELECT now()")
    return victim, killed_at


def _claim_take_over(
    stage: Stage, history: list[Recorded], victim: Worker, killed_at: datetime
) -> None:
    """The first event of another worker: who took over, and when."""
    pid = victim.process.pid
    begun = [(r.recorded_at, r.event) for r in history if isinstance(r.event, StepStarted)]
    others = [(at, pid_of(event.worker)) for at, event in begun if pid_of(event.worker) != pid]
    at, heir_pid = others[0] if others else (killed_at, 0)
    heir = next((w.name for w in stage.workers if w.process.pid == heir_pid), None)
    seconds = (at - killed_at).total_seconds()
    stage.claim(
        heir is not None and 0 <= seconds < 10,
        f"Worker {heir} noticed the silence and took over, {seconds:.1f} s after the kill.",
        others,
    )


async def _claim_exactly_one(stage: Stage, name: str, history: list[Recorded]) -> None:
    async def answered() -> bool:
        return bool(stage.evolution.journal.requests("create", name))

    await eventually(answered, "Evolution has written the create into its journal")
    creates = len(stage.evolution.journal.requests("create", name))
    stage.claim(
        stage.applied(name).count("created") == 1 and creates == 1,
        "Evolution was asked to create once, and made exactly one instance.",
        stage.applied(name),
    )
    results = [
        r.event.result
        for r in history
        if isinstance(r.event, StepSucceeded) and r.event.step == "evolution"
    ]
    stage.claim(
        len(results) == 1 and results[0].get("adopted") is True,
        "It looked before it acted, found the instance with our ownership token, and kept it.",
        results,
    )
