"""Where Evolution delivers its webhooks: recognised, stored, answered; all in a few milliseconds.

What can't be taken now is answered with 503, since Evolution gives up for good at a 4xx and comes
again, for twenty minutes, after anything else.
"""

from typing import Annotated, Final
from uuid import UUID

import structlog
from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from redis.exceptions import RedisError

from events.database import TRANSIENT
from orchestrator.api.openapi import problems
from orchestrator.api.parts import Parts
from orchestrator.api.problems import Problem, unavailable
from orchestrator.config import servers_of
from orchestrator.routing import RoutingUnavailable
from orchestrator.webhooks.credentials import Credentials, Shown
from orchestrator.webhooks.hints import (
    BadWebhook,
    Hint,
    Message,
    Nothing,
    Told,
    others_named,
    read,
    understand,
)
from orchestrator.webhooks.inbox import Inbox, NotYet, Taken
from sagas.vocabulary import ExistingName

router = APIRouter(prefix="/webhooks/evolution", tags=["webhooks"])
_logger = structlog.get_logger("evosaga.webhooks")
_NAME: Final[TypeAdapter[str]] = TypeAdapter(ExistingName)
_PROBLEMS: Final = problems(
    "malformed_json",
    "too_deep",
    "forbidden_character",
    "wrong_shape",
    "unauthorized",
    "forbidden",
    "oversized",
    "internal",
    "unavailable",
)
_STRANGER: Final = "a webhook must show the token that its integration was created with"


class Receipt(BaseModel):
    """What became of a delivery."""

    status: Taken


class Receiver:
    """The two halves of receiving, made once for an application."""

    def __init__(self, parts: Parts) -> None:
        secrets = [one.api_key.get_secret_value() for one in servers_of(parts.settings).values()]
        self.credentials = Credentials(parts.pool, parts.world.keys)
        self.inbox = Inbox(parts.pool, parts.redis, secrets)


@router.post(
    "/{instance_name}", summary="Evolution's events about one instance", responses=_PROBLEMS
)
async def instance_webhook(
    instance_name: str,
    request: Request,
    x_webhook_token: Annotated[str | None, Header()] = None,
    authorization: Annotated[str | None, Header()] = None,
) -> Receipt:
    """Authenticated by `X-Webhook-Token`, or by a JSON Web Token that is signed with it."""
    receiver = _receiver(request)
    name = _checked(instance_name)
    scheme, _, bearer = (authorization or "").partition(" ")
    shown = Shown(x_webhook_token, bearer.strip() if scheme.lower() == "bearer" else None)
    try:
        integration_id = await receiver.credentials.recognise(name, shown)
    except TRANSIENT:
        raise unavailable("Postgres") from None
    if integration_id is None:
        _logger.info("webhook refused", instance=name)
        raise Problem("unauthorized", _STRANGER)
    told, others = await _told(request)
    if others := (others | {told.instance_name}) - {name}:
        named = sorted(other[:100] for other in others)
        _logger.error("webhook names another instance", instance=name, others=named)
        raise Problem("forbidden", "the body is about another instance than the address")
    return await _take(receiver, told, integration_id)


@router.post("", summary="Evolution's global webhook", responses=_PROBLEMS)
async def global_webhook(request: Request, token: Annotated[str, Query()] = "") -> Receipt:
    """For the instances whose own webhook leads elsewhere. `evosaga doctor` shows the address, with
    `--show-secrets` the whole of it.
    """
    receiver = _receiver(request)
    if not receiver.credentials.is_global(token):
        _logger.info("global webhook refused")
        raise Problem(
            "unauthorized", "the address must carry ?token=; see `evosaga doctor --show-secrets`"
        )
    told, _ = await _told(request)
    try:
        name = _checked(told.instance_name)
        known = await receiver.credentials.known(name)
    except Problem:  # other people's instances may be called anything
        return Receipt(status=Taken.IGNORED)
    except TRANSIENT:
        raise unavailable("Postgres") from None
    if known.current is None or (isinstance(told, Message) and known.elsewhere):
        return Receipt(status=Taken.IGNORED)
    return await _take(receiver, told, None, known.current)


async def _take(
    receiver: Receiver,
    told: Told,
    integration_id: UUID | None,
    current: UUID | None = None,
) -> Receipt:
    """``integration_id`` is what the token proves, ``current`` what is known without one."""
    try:
        match told:
            case Nothing():
                return Receipt(status=Taken.IGNORED)
            case Message():
                return Receipt(status=await receiver.inbox.hand_on(told, integration_id))
            case Hint():
                taken = await receiver.inbox.store(told, integration_id)
                if taken is Taken.STORED and told.is_about_qr:
                    await receiver.inbox.keep_qr(told, integration_id or current)
                return Receipt(status=taken)
    except NotYet as reason:
        raise Problem("unavailable", str(reason), headers={"Retry-After": "2"}) from None
    except RoutingUnavailable:
        raise unavailable("Postgres") from None
    except RedisError:
        raise unavailable("Redis") from None
    except TRANSIENT:
        raise unavailable(
            "Redis or Postgres" if isinstance(told, Message) else "Postgres"
        ) from None


def _receiver(request: Request) -> Receiver:
    state = request.app.state
    if not hasattr(state, "receiver"):
        state.receiver = Receiver(state.parts)
    receiver: Receiver = state.receiver
    return receiver


def _checked(name: str) -> str:
    """A name that may become part of a key. Another one is no instance of ours."""
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        raise Problem("unauthorized", _STRANGER) from None


async def _told(request: Request) -> tuple[Told, set[str]]:
    """What the body says, and the other instances it names. Raises the problem with it."""
    try:
        body = read(await request.body())
        told = understand(body)
    except BadWebhook as bad:
        raise Problem(bad.code, bad.message) from None
    return told, others_named(told, body)
