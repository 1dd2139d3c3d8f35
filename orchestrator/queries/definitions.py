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
        "on_conflict": saga.on_conflict
        if isinstance(saga.on_conflict, str)
        else dict(saga.on_conflict),
        "keyed": saga.admit is not None or saga.business_key is not None,
        "steps": [_step(step) for step in saga.steps],
        "data": saga.input.model_json_schema(),
        "result": saga.result.model_json_schema() if saga.result is not None else None,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "kind": str(step.kind),
        "attempts": step.retry.attempts,
        "undo_attempts": step.retry_of("compensation").attempts if step.undo else None,
        "timeout": step.timeout,
        "limits": [
            {"name": one.name, "concurrency": one.concurrency, "rate": one.rate}
            for one in step.limits
        ],
        "probe": step.probe is not None,
        "undo": getattr(step.undo, "__name__", "its undo") if step.undo is not None else None,
    }
