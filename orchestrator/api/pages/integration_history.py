"""The history of one integration: its sagas and the notices of its connection."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView


def leaving_said(row: IntegrationView | None, sagas: Sequence[SagaView]) -> str:
    """The state of an integration that is marked as being deleted, in a sentence. Pure."""
    if row is None or row.status != "deleting":
        return ""
    deletes = [saga for saga in sagas if saga.saga == "delete-integration"]
    if any(not saga.over for saga in deletes):
        return "It is being deleted by a saga."
    if any(saga.status == "failed" for saga in deletes):
        return "Its delete is parked: it needs attention."
    return "It is marked as being deleted, and no saga is deleting it: evosaga reconcile."


@dataclass(frozen=True, slots=True)
class Happened:
    """A saga about the integration, or a notice of its connection."""

    at: datetime
    saga: SagaView | None = None
    notice: str = ""


async def told(
    here: AppContext, row: IntegrationView | None, sagas: Sequence[SagaView]
) -> list[Happened]:
    """Newest first."""
    told = [Happened(saga.created_at, saga) for saga in sagas]
    if row is not None:
        told += [
            Happened(one["recorded_at"], notice=_noticed(one))
            for one in await here.pool.fetch(_NOTICES, row.id)
        ]
    return sorted(told, key=lambda one: one.at, reverse=True)


def _noticed(notice: asyncpg.Record) -> str:
    """A notice in words, with its reason, if any: a ban differs from a log-out."""
    how = [notice["state"], f"reason {notice['reason']}" if notice["reason"] else None]
    told = ", ".join(word for word in how if word)
    return f"{notice['type']} ({told})" if told else str(notice["type"])


_NOTICES: Final = """
SELECT type, recorded_at, data ->> 'state' AS state, data ->> 'reason' AS reason
FROM evosaga.notices WHERE integration_id = $1 ORDER BY id DESC LIMIT 20
"""
