"""The page of all saga definitions that this release knows, drawn as diagrams."""

from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.pages import start
from evosaga.orchestrator.api.pages.diagram import diagram
from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts
from evosaga.orchestrator.api.pages.rendering import ROOT, respond

router: Final = page_router()

_ASKED_FOR: Final = ("integration.create", "integration.delete")


@router.get(f"{ROOT}/definitions")
async def definitions(request: Request, who: Reader) -> Response:
    """Every version of every saga; commands start the newest version of each."""
    known = parts(request).registry.versions.values()
    newest = {saga.name: saga.version for saga in sorted(known, key=lambda s: s.version)}
    # Sagas that users start come before internal ones.
    order = sorted(known, key=lambda s: (s.command not in _ASKED_FOR, s.name, -s.version))
    drawn = [diagram(saga) for saga in order]
    return respond(
        "definitions.html",
        **frame(request, who, "definitions"),
        diagrams=drawn,
        newest=newest,
        startable=start.startable(parts(request), who),
    )
