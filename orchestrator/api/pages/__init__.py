"""The dashboard: server-rendered pages with status, histories, replay and cancel.

No build step. All data from outside is untrusted text: templates escape by default, there is no
inline script or style, and the content security policy makes the browser enforce that.
"""

from typing import Final

from fastapi import APIRouter

from evosaga.orchestrator.api.pages import (
    alerts,
    definitions,
    home,
    integration_list,
    integrations,
    letters,
    login,
    reconciliation,
    runbook,
    saga_actions,
    saga_selection,
    sagas,
    search,
    start,
    static_files,
    upkeep_actions,
    workers,
)

_TOPICS: Final = (
    home,
    sagas,
    saga_actions,
    saga_selection,
    search,
    letters,
    workers,
    alerts,
    runbook,
    definitions,
    start,
    login,
    static_files,
)
_WHATSAPP: Final = (integration_list, integrations, reconciliation, upkeep_actions)


def router(*, whatsapp: bool) -> APIRouter:
    """All pages; those about integrations only with ``whatsapp``."""
    every = APIRouter(include_in_schema=False)
    for topic in (*_TOPICS, *(_WHATSAPP if whatsapp else ())):
        every.include_router(topic.router)
    return every
