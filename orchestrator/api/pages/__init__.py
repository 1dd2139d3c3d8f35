"""The dashboard: what is going on, what became of one saga, and the buttons to steer it.

Server-rendered, no build step. Everything that came from outside is hostile text here: templates
escape by themselves, there is no inline script or style, and the content security policy holds
the browser to that.
"""

from typing import Final

from fastapi import APIRouter

from evosaga.orchestrator.api.pages import (
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
    definitions,
    login,
    static_files,
):
    router.include_router(_topic.router)
