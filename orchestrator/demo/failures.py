"""Scene 4: a create that fails for good at each step that can be undone. The failures are real."""

from __future__ import annotations

import asyncio
from uuid import UUID

from evosaga.orchestrator.cli.follow import Seen
from evosaga.orchestrator.cli.integrations import new_id
from evosaga.orchestrator.demo.assertions import eventually
from evosaga.orchestrator.demo.environment import Stage
from evosaga.orchestrator.demo.scenes import CREATE_STEPS, wish
from evosaga.orchestrator.queries.timeline import steps_of, undone


async def at_evolution(stage: Stage) -> None:
    """Evolution itself says no."""
    stage.show.scene("4a. A create fails at its first step: Evolution refuses")
    saga_id, name = _names()
    stage.evolution.arm(
        "reject", operation="create", name=name, status=400, message="Invalid integration"
    )
    await stage.ask("integration.create", wish("Clínica Lua"), saga_id)
    seen = await stage.watch(UUID(saga_id), CREATE_STEPS)
    _claim_rolled_back(stage, seen, "evolution_refused", [])
    stage.claim(
        not stage.applied(name),
        "Evolution made nothing, so there was nothing to undo, and nothing is there.",
        stage.applied(name),
    )
    await _claim_nothing_left(stage, name)


async def at_postgres(stage: Stage) -> None:
    """Between our step on Evolution and our row, another program writes its own row."""
    stage.show.scene("4b. It fails at its second step: another program was faster in Postgres")
    saga_id, name = _names()
    data = wish("Clínica Mar", channel="EVOLUTION")
    # The instance is made at once; that Evolution answers late is the rival's chance.
    stage.evolution.arm("slow_after", operation="create", name=name, seconds=0.8)
    await stage.ask("integration.create", data, saga_id)
    seen, rival = await asyncio.gather(
        stage.watch(UUID(saga_id), CREATE_STEPS), _a_rival(stage, name, data["organization_id"])
    )
    _claim_rolled_back(stage, seen, "integration_exists", ["evolution"])
    stage.claim(
        stage.applied(name) == ["created", "removed"],
        "Evolution's journal has it: the instance was made, then removed again.",
        stage.applied(name),
    )
    await _claim_nothing_left(stage, name)
    stage.claim(
        await stage.row(rival) is not None,
        "The other program's row was left alone.",
        await stage.row(rival),
    )
    await stage.pool.execute(
        "DELETE FROM healthcare.integrations WHERE config ->> 'instance_name' = $1", rival
    )


async def _a_rival(stage: Stage, name: str, organization_id: str) -> str:
    """A program that knows nothing of sagas and calls the old RPC, just in between."""

    async def made() -> bool:
        return stage.instance(name)

    await eventually(made, "the instance is made")
    rival = f"rival-{organization_id[:8]}"
    await stage.pool.execute(
        "SELECT healthcare.save_evolution_integration($1, $2)", UUID(organization_id), rival
    )
    return rival


async def at_cache(stage: Stage) -> None:
    """Valkey answers with an error, again and again; its outcome counts as unknown."""
    stage.show.scene("4c. It fails at its third step: Valkey answers with errors")
    saga_id, name = _names()
    # A list where a text belongs: the same WRONGTYPE a real mix-up of keys would cause.
    await stage.redis.lpush(f"evosaga:removed:{name}", "not a text")
    stage.show.say("An error may hide an effect, so it is tried five times, with growing pauses.")
    await stage.ask("integration.create", wish("Clínica Rio", channel="EVOLUTION"), saga_id)
    seen = await stage.watch(UUID(saga_id), CREATE_STEPS)
    _claim_rolled_back(stage, seen, "redis_error", ["cache", "postgres", "evolution"])
    tries = {step.name: step.attempts for step in steps_of(seen.history)}
    stage.claim(
        tries == {"evolution": 1, "postgres": 1, "cache": 5},
        "The failed step itself was undone as well: whether it had its effect is unknown.",
        tries,
    )
    stage.claim(
        stage.applied(name) == ["created", "removed"],
        "Evolution's journal has it: the instance was made, then removed again.",
        stage.applied(name),
    )
    await _claim_nothing_left(stage, name)


def _names() -> tuple[str, str]:
    """A command's id, and the instance name that follows from it."""
    saga_id = new_id()
    return saga_id, f"wa-{saga_id}"


def _claim_rolled_back(stage: Stage, seen: Seen, code: str, order: list[str]) -> None:
    view = seen.view
    assert view is not None
    told = f"Undone, in this order: {', '.join(order)}." if order else "Nothing had to be undone."
    stage.claim(
        (view.status, view.code, undone(seen.history)) == ("compensated", code, order),
        f"Rolled back, because: {view.message}. {told}",
        (view.status, view.code, undone(seen.history)),
    )


async def _claim_nothing_left(stage: Stage, name: str) -> None:
    left = await stage.left_of(name)
    stage.claim(not left, "Nothing of it is left in Evolution, Postgres or Valkey.", left)
