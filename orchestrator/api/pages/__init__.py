"""The dashboard: server-rendered pages with status, histories, replay and cancel.

No build step. All data from outside is untrusted text: templates escape by default, there is no
inline script or style, and the content security policy makes the browser enforce that.
"""

from typing import Final

from fastapi import APIRouter

from evosaga.orchestrator.api.pages import (
    definitions,
    home,
    integration_list,
    integrations,
    letters,
    login,
    reconciliation,
    saga_actions,
    saga_selection,
    sagas,
    search,
    static_files,
    upkeep_actions,
    workers,
)

router: Final = APIRouter(include_in_schema=False)
for _topic in (
    home,
    sagas,
    saga_actions,
    saga_selection,
    integration_list,
    integrations,
    search,
    reconciliation,
    upkeep_actions,
    letters,
    workers,
    definitions,
    login,
    static_files,
):
    router.include_router(_topic.router)
