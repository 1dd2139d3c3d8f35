"""A worker in a process of its own that is forked, not started, so that it is up at once.

For tests that need many of them. What forks them has imported the product already.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import evosaga.events.relay
import evosaga.orchestrator.commands.consumer
import evosaga.orchestrator.commands.subscriber
import evosaga.orchestrator.engine.recovery
import evosaga.sagas.whatsapp.steps.instance_removal
from evosaga.events import syncpoints
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.sagas.definition import Retry
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from tests.support.preloaded import forkserver

HURRIED = (
    (evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.3),
    (evosaga.orchestrator.commands.subscriber, "_LOOK", 200),
    (evosaga.orchestrator.engine.recovery, "_EVERY", 0.1),
    (evosaga.events.relay, "_LEASE_SECONDS", 0.5),
    (evosaga.sagas.whatsapp.steps.instance_removal, "_REMOVAL_SECONDS", 0.3),
)
"""Waits of the product that are made shorter in both workers, the one that dies and its heir."""


def impatient() -> SagaRegistry:
    """The same sagas; steps outside Evolution are tried twice only, of which one may be lost."""
    twice = Retry(attempts=2, first=0.1)
    return registry_of(
        replace(
            saga,
            steps=tuple(
                step if step.name == "evolution" else replace(step, retry=twice)
                for step in saga.steps
            ),
        )
        for saga in discover().versions.values()
    )


def steady() -> SagaRegistry:
    """The same sagas with short waits: attempts enough for a step that raises again and again."""
    often = Retry(attempts=8, first=0.05, factor=1.0)
    return registry_of(
        replace(saga, steps=tuple(replace(step, retry=often, timeout=10.0) for step in saga.steps))
        for saga in discover().versions.values()
    )


def victim(settings: Settings, armed: Sequence[Mapping[str, Any]], log: Path) -> ForkServerProcess:
    """A worker that runs until a sync point, or somebody, ends it."""
    process = forkserver().Process(target=_work, args=(settings, list(armed), log), daemon=True)
    process.start()
    return process


def _work(settings: Settings, armed: list[dict[str, Any]], log: Path) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    for module, name, seconds in HURRIED:
        setattr(module, name, seconds)
    syncpoints.arm(armed)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running_worker(settings, impatient()) as worker:
        await asyncio.wait(
            (asyncio.ensure_future(stop.wait()), worker.failed),
            return_when=asyncio.FIRST_COMPLETED,
        )
