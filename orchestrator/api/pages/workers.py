"""Workers: which are alive, since when, and how many sagas each has claimed."""

from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.pages.forms import Reader, absent, frame, page_router, parts
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.queries import upkeep

router: Final = page_router()

_MOST: Final = 200


@router.get(f"{ROOT}/workers")
async def workers(request: Request, who: Reader) -> Response:
    """The living first. How the installation is doing is for operators only."""
    if who.organization_id is not None:
        raise absent("page")
    pool = parts(request).pool
    return respond(
        "workers.html",
        **frame(request, who, "upkeep"),
        workers=await upkeep.workers(pool, limit=_MOST),
        now=await pool.fetchval("SELECT now()"),
    )
