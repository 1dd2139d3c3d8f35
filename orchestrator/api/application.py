"""The FastAPI application: routers, middleware and exception handlers."""

from functools import partial
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI

from evosaga.orchestrator.api import (
    alerts,
    asyncapi,
    commands,
    docs_page,
    findings,
    fixes,
    integrations,
    openapi,
    ops,
    pages,
    problems,
    qr,
    recovery,
    sagas,
    search,
    start,
    upkeep,
    webhooks,
)
from evosaga.orchestrator.api.auth import Authenticator
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.metrics import HttpMetrics
from evosaga.orchestrator.api.middleware import AT_THE_DOOR, GuardMiddleware, RateLimiter, WrongKeys
from evosaga.orchestrator.api.pages.forms import trouble_of_a_page
from evosaga.orchestrator.api.reads import Writers
from evosaga.orchestrator.api.saga_watcher import SagaWatcher
from evosaga.orchestrator.api.sessions import EndedSessions
from evosaga.orchestrator.api.static_documents import Documents
from evosaga.orchestrator.config.api_keys import read_api_keys
from evosaga.orchestrator.config.settings import SettingsError, split_secrets
from evosaga.orchestrator.maintenance import tracing

_TOPICS: Final = (
    integrations,
    findings,
    fixes,
    search,
    qr,
    commands,
    sagas,
    start,
    webhooks,
    ops,
    upkeep,
    recovery,
    alerts,
    asyncapi,
    docs_page,
)
_WHATSAPP: Final = (integrations, findings, fixes, search, qr, webhooks)
"""What there is only where WhatsApp is one of the domains."""


class Api(FastAPI):
    """FastAPI whose OpenAPI document describes invalid input as the problem that is really sent."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        openapi.finish(document, openapi.problems(*AT_THE_DOOR))
        return document


def create_app(parts: AppContext) -> FastAPI:
    """The application. Raises ``SettingsError`` without API keys or without a secret key."""
    settings = parts.settings
    if settings.api_keys is None:
        raise SettingsError("EVOSAGA_API_KEYS is not set; write name:key or name:key:organization")
    if settings.secret_key is None:
        raise SettingsError("EVOSAGA_SECRET_KEY is not set; sessions are signed with it")
    app = Api(
        title="evosaga",
        version=version("evosaga"),
        summary="Keeps Evolution API, Postgres and Redis in agreement.",
        openapi_url=None,  # served by `docs_page`; FastAPI's own page loads scripts
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "/", "description": "the server that this document was read from"}],
    )
    app.state.parts = parts
    app.state.doorkeeper = Authenticator(
        read_api_keys(settings.api_keys.get_secret_value()), split_secrets(settings.secret_key)
    )
    app.state.rates = RateLimiter(settings.api_rate)
    app.state.wrong_keys = WrongKeys()
    prefix = parts.settings.redis_prefix
    app.state.documents = Documents(partial(docs_page.written, app, parts.registry, prefix))
    app.state.ended = EndedSessions(parts.pool)
    app.state.watch = SagaWatcher(parts.pool)
    app.state.metrics = HttpMetrics()
    app.state.writers = Writers()
    problems.install(app, trouble_of_a_page)
    for module in _TOPICS:
        if parts.whatsapp or module not in _WHATSAPP:
            app.include_router(module.router)
    app.include_router(pages.router(whatsapp=parts.whatsapp))
    app.add_middleware(GuardMiddleware, draw=trouble_of_a_page)
    tracing.of_app(app)
    return app
