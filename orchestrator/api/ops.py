"""Routes for operators: liveness, readiness and metrics."""

from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from evosaga.orchestrator.api.auth import operator
from evosaga.orchestrator.api.dependencies import Context
from evosaga.orchestrator.api.metrics import CONTENT_TYPE, exposition
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.readiness import checks, ready

router: Final = APIRouter(tags=["operations"])


class Alive(BaseModel):
    status: str = "alive"


class CheckShape(BaseModel):
    ok: bool
    said: str
    needed: bool


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, CheckShape]


_OPEN: Final[dict[str, Any]] = {"openapi_extra": {"security": []}}
"""A route that needs no key."""


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?", operation_id="getLiveness", **_OPEN)
async def healthz() -> Alive:
    """It answers, so it is. Restart it when it does not."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Can it do its work?",
    operation_id="getReadiness",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "something that is needed is missing"}},
    **_OPEN,
)
async def readyz(here: Context) -> Response:
    """Red when a consumer is dead, Postgres or Redis is gone, or the schema is not ours."""
    found = await checks(here)
    body = {"ready": ready(found), "checks": {k: asdict(v) for k, v in found.items()}}
    return JSONResponse(body, 200 if body["ready"] else 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    operation_id="getMetrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems("forbidden", *EVERYWHERE),
    },
    dependencies=[Depends(operator)],
)
async def metrics(request: Request, here: Context) -> Response:
    """Numbers over all organizations, so it takes a key that belongs to none."""
    return Response(await exposition(here, request.app.state.metrics), media_type=CONTENT_TYPE)
