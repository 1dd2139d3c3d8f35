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
    integrations,
    login,
    reconciliation,
    saga_actions,
    sagas,
    static_files,
)

router: Final = APIRouter(include_in_schema=False)
for _topic in (
    home,
    sagas,
    saga_actions,
    integrations,
    reconciliation,
    alerts,
    definitions,
    login,
    static_files,
):
    router.include_router(_topic.router)
