"""Workers: which are alive, since when, and how many sagas each has claimed."""

from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.events.clock import LIVING
from evosaga.orchestrator.api.pages.forms import Reader, absent, frame, page_router, parts
from evosaga.orchestrator.api.pages.rendering import ROOT, respond

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
        workers=await pool.fetch(_WORKERS, _MOST),
        now=await pool.fetchval("SELECT now()"),
    )


_WORKERS: Final = f"""
SELECT worker_id, started_at, lease_until, alive, coalesce(cardinality(knows), 0) AS definitions,
       (SELECT count(*) FROM evosaga.sagas
        WHERE owner = worker_id AND status IN ('running', 'compensating')) AS sagas
FROM (SELECT *, ({LIVING}) AS alive FROM evosaga.workers) AS known
ORDER BY alive DESC, started_at DESC LIMIT $1
"""  # noqa: S608  # constants only
