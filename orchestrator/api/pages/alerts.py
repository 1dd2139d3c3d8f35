"""The page of alerts: what is wrong, what was, and the receivers."""

from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.auth import visible
from evosaga.orchestrator.api.pages.forms import Reader, frame, page_router, parts
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.api.pages.runbook import place
from evosaga.orchestrator.config.receivers import receivers_of
from evosaga.orchestrator.maintenance.alerts.view import listing, receivers

router: Final = page_router()
_MOST: Final = 50


@router.get(f"{ROOT}/alerts")
async def alerts(request: Request, who: Reader) -> Response:
    """Of the whole installation, so a key of one organization is told that it needs another."""
    here = parts(request)
    allowed = visible(who, None)
    found = await listing(here.pool, resolved=True, limit=_MOST) if allowed else []
    runbook = here.settings.runbook_url
    still = [one for one in found if one.state != "resolved"]
    return respond(
        "alerts.html",
        **frame(request, who, "alerts"),
        allowed=allowed,
        headline=headline(len(still)) if allowed else "Alerts",
        still=still,
        over=[one for one in found if one.state == "resolved"],
        receivers=await receivers(here.pool, receivers_of(here.settings)) if allowed else [],
        runbook={one.code: place(runbook, one.code) for one in found},
        now=await here.pool.fetchval("SELECT now()"),
    )


def headline(still: int) -> str:
    """How many alerts there are now. Pure."""
    if not still:
        return "No alert"
    return "One alert" if still == 1 else f"{still} alerts"
