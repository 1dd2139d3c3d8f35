"""The parts that receive webhooks, made once for an application, and the log of refusals."""

from collections import OrderedDict
from typing import Final

import structlog
from starlette.requests import HTTPConnection

from evosaga.orchestrator.api.connection_limits import RateLimitedLog
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.config.settings import servers_of
from evosaga.orchestrator.whatsapp.webhooks.authentication import WebhookAuthenticator
from evosaga.orchestrator.whatsapp.webhooks.body_reader import BodyReader
from evosaga.orchestrator.whatsapp.webhooks.inbox import Inbox

_logger = structlog.get_logger("evosaga.webhooks")
_KEPT: Final = 1000


class Receiver:
    """Reader, credentials and inbox, made once for an application."""

    def __init__(self, parts: AppContext) -> None:
        secrets = [one.api_key.get_secret_value() for one in servers_of(parts.settings).values()]
        self.credentials = WebhookAuthenticator(parts.pool, parts.services.keys)
        self.bodies = BodyReader(parts.settings.webhook_max_bytes)
        self.inbox = Inbox(parts.pool, parts.redis, secrets)
        self.strangers = RateLimitedLog()
        self._lately: OrderedDict[tuple[str, str], RateLimitedLog] = OrderedDict()

    def tell(self, instance: str, code: str, size: int | None, event: str | None) -> None:
        """Log a refusal, since a message may be lost: at most one line a minute for each instance
        and reason, because Evolution can deliver hundreds a second.
        """
        lately = self._lately.setdefault((instance, code), RateLimitedLog())
        while len(self._lately) > _KEPT:
            self._lately.popitem(last=False)
        if times := lately.due():
            told = {"instance": instance, "webhook_event": event, "bytes": size, "times": times}
            _logger.warning("webhook refused", reason=code, **told)


def receiver_of(connection: HTTPConnection) -> Receiver:
    """The receiver of the connection's application."""
    state = connection.app.state
    if not hasattr(state, "receiver"):
        state.receiver = Receiver(state.parts)
    receiver: Receiver = state.receiver
    return receiver
