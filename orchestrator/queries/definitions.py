"""Saga definitions as JSON: what terminal, HTTP API and generators of clients are shown."""

from typing import Any

from evosaga.sagas.definition import Saga, Step
from evosaga.sagas.registry import SagaRegistry


def described(registry: SagaRegistry) -> list[dict[str, Any]]:
    """Every version of every saga: those that commands start first, the newest version first."""
    every = sorted(
        registry.versions.values(), key=lambda one: (one.internal, one.name, -one.version)
    )
    return [_document(one, registry.packages.get(one.name, "")) for one in every]


def _document(saga: Saga, package: str) -> dict[str, Any]:
    return {
        "saga": saga.name,
        "version": saga.version,
        "command": saga.command,
        "internal": saga.internal,
        "package": package,
        "organizations": saga.organization is not None
        or saga.command in ("integration.create", "integration.delete"),
        "on_conflict": _on_conflict(saga),
        "steps": [_step(step) for step in saga.steps],
        "data": saga.input.model_json_schema(),
        "result": saga.result.model_json_schema() if saga.result is not None else None,
    }


def _on_conflict(saga: Saga) -> str | dict[str, str] | None:
    """What becomes of a command whose business key is taken; None: it waits for no other."""
    if saga.admit is None and saga.business_key is None:
        return None
    policy = saga.on_conflict
    return policy if isinstance(policy, str) else dict(policy)


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "kind": str(step.kind),
        "attempts": step.retry.attempts,
        "timeout": step.timeout,
        "probe": step.probe is not None,
        "limits": [
            {"name": one.name, "concurrency": one.concurrency, "rate": one.rate}
            for one in step.limits
        ],
        "undo_attempts": step.retry_of("compensation").attempts if step.undo else None,
        "undo": getattr(step.undo, "__name__", "its undo") if step.undo is not None else None,
    }
