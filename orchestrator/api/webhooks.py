"""The webhook routes for Evolution: authenticate, store, answer, within milliseconds.

Evolution gives up for good at 400, 401, 403, 404 and 422, and retries for twenty minutes after
anything else. So what cannot be stored *now* is answered with 503, what is too large with 413 (the
operator may raise the limit meanwhile), and every refusal is logged.
"""

import asyncio
from dataclasses import replace
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes
from uuid import UUID

import structlog
from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel
from redis.exceptions import RedisError

from evosaga.events.database import TRANSIENT
from evosaga.orchestrator.api.openapi import problems, secured
from evosaga.orchestrator.api.problems import Problem, unavailable
from evosaga.orchestrator.api.webhook_receiver import Receiver, receiver_of
from evosaga.orchestrator.routing import RoutingUnavailable
from evosaga.orchestrator.whatsapp.webhooks.authentication import Presented
from evosaga.orchestrator.whatsapp.webhooks.body_reader import Body, TooLarge, TooManyBodies
from evosaga.orchestrator.whatsapp.webhooks.inbox import RetryLater, Taken
from evosaga.orchestrator.whatsapp.webhooks.payloads import (
    BadWebhook,
    ConnectionHint,
    Ignored,
    Message,
    Parsed,
    others_named,
    read,
    understand,
)

router = APIRouter(prefix="/webhooks/evolution", tags=["webhooks"])
_logger = structlog.get_logger("evosaga.webhooks")
_PATH: Final = b"/webhooks/evolution/"
_LONGEST_NAME: Final = 255
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


@router.post(
    "/{instance_name}",
    summary="Evolution's events about one instance",
    operation_id="receiveInstanceWebhook",
    responses=_PROBLEMS,
    openapi_extra=secured("Webhook-Token", "Webhook-JWT"),
)
@router.post("/{instance_name}/{event:path}", include_in_schema=False)
async def instance_webhook(
    instance_name: str,
    request: Request,
    x_webhook_token: Annotated[str | None, Header()] = None,
    authorization: Annotated[str | None, Header()] = None,
) -> Receipt:
    """Authenticated by `X-Webhook-Token`, or by a JSON Web Token that is signed with it.

    What follows the name in the path is looked past: with `byEvents` Evolution puts the event's
    name there, which the body says as well.
    """
    receiver = receiver_of(request)
    if receiver.credentials.is_global(request.query_params.get("token", "")):
        return await _global(receiver, request)  # with byEvents the path begins with the token
    name = _name_in(request)
    scheme, _, bearer = (authorization or "").partition(" ")
    shown = Presented(x_webhook_token, bearer.strip() if scheme.lower() == "bearer" else None)
    try:
        integration_id = await receiver.credentials.recognise(name, shown)
    except TRANSIENT:
        raise unavailable("Postgres") from None
    if integration_id is None:
        await _stranger(receiver, request, name)
        raise Problem("unauthorized", _STRANGER)
    told, others = await _told(receiver, request, name)
    if others := (others | {told.instance_name}) - {name}:
        named = sorted(other[:100] for other in others)
        _count(request, "forbidden")
        _logger.error("webhook names another instance", instance=name, others=named)
        raise Problem("forbidden", "the body is about another instance than the address")
    return await _take(receiver, request, told, integration_id)


@router.post(
    "",
    summary="Evolution's global webhook",
    operation_id="receiveGlobalWebhook",
    responses=_PROBLEMS,
    openapi_extra=secured("Global-Webhook-Token"),
)
@router.post("/", include_in_schema=False)
async def global_webhook(request: Request, token: Annotated[str, Query()] = "") -> Receipt:
    """For the instances whose own webhook leads elsewhere. `evosaga doctor` shows the address, with
    `--show-secrets` the whole of it.
    """
    receiver = receiver_of(request)
    if not receiver.credentials.is_global(token):
        await _stranger(receiver, request, None)
        raise Problem(
            "unauthorized", "the address must carry ?token=; see `evosaga doctor --show-secrets`"
        )
    return await _global(receiver, request)


async def _global(receiver: Receiver, request: Request) -> Receipt:
    told, _ = await _told(receiver, request, "(global)")
    try:
        known = await receiver.credentials.known(told.instance_name)
    except TRANSIENT:
        raise unavailable("Postgres") from None
    if known.current is None or (isinstance(told, Message) and known.elsewhere):
        return _receipt(request, Taken.IGNORED)  # instances of other owners are ignored
    return await _take(receiver, request, told, None, known.current)


async def _stranger(receiver: Receiver, request: Request, name: str | None) -> None:
    """Refuse a delivery without a valid token; logged when it names a known instance."""
    _count(request, "unauthorized")
    try:
        ours = name and (await receiver.credentials.known(name)).current
    except TRANSIENT:
        ours = None
    if name and ours:
        receiver.tell(name, "unauthorized", _announced(request), None)
    elif times := receiver.strangers.due():
        _logger.info("webhooks_unauthorized", instance=name, times=times)


async def _take(
    receiver: Receiver,
    request: Request,
    told: Parsed,
    integration_id: UUID | None,
    current: UUID | None = None,
) -> Receipt:
    """``integration_id`` is what the token proves, ``current`` what is known without one."""
    try:
        match told:
            case Ignored():
                return _receipt(request, Taken.IGNORED)
            case Message():
                taken = await receiver.inbox.hand_on(told, integration_id)
                return _receipt(request, taken)
            case ConnectionHint():
                taken = await receiver.inbox.store(told, integration_id)
                if taken is Taken.STORED and told.is_about_qr:
                    await receiver.inbox.keep_qr(told, integration_id or current)
                return _receipt(request, taken)
    except RetryLater as reason:
        raise _later(request, str(reason)) from None
    except RoutingUnavailable:
        raise unavailable("Postgres") from None
    except RedisError:
        raise unavailable("Redis") from None
    except TRANSIENT:
        raise unavailable(
            "Redis or Postgres" if isinstance(told, Message) else "Postgres"
        ) from None


def _name_in(request: Request) -> str:
    """The instance's name in the path, percent-decoded; older names may hold any character. Raises
    the 401 of an unknown sender for an impossible name.
    """
    raw = bytes(request.scope["raw_path"]).partition(_PATH)[2].partition(b"/")[0]
    name = unquote_to_bytes(raw).decode(errors="replace")
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise Problem("unauthorized", _STRANGER)
    return name


async def _told(receiver: Receiver, request: Request, name: str) -> tuple[Parsed, set[str]]:
    """The parsed body, and the other instances that it names. Raises the problem with it."""
    announced = _announced(request)
    try:
        body = await receiver.bodies.read(request.stream(), announced)
        if body.large:
            told, others = await asyncio.to_thread(_understood, body)
        else:
            told, others = _understood(body)
    except TooManyBodies:
        raise _later(request, "as many large webhooks as can be are being read") from None
    except TooLarge as much:
        _count(request, "oversized")
        receiver.tell(name, "oversized", much.size, much.event)
        raise Problem("oversized", much.said) from None
    except BadWebhook as bad:
        _count(request, bad.code)
        receiver.tell(name, bad.code, announced, None)
        raise Problem(bad.code, bad.message) from None
    if body.omitted:
        _logger.info(
            "long texts left out of a webhook",
            instance=name,
            webhook_event=told.event,
            bytes=body.size,
            omitted=body.omitted,
        )
    return told, others


def _announced(request: Request) -> int | None:
    """The size of the body according to its Content-Length."""
    length = request.headers.get("content-length", "")
    return int(length[:20]) if length.isdecimal() else None


def _understood(body: Body) -> tuple[Parsed, set[str]]:
    read_ = read(body.raw)
    told = understand(read_)
    if isinstance(told, Message):
        told = replace(told, omitted=body.omitted, large=body.large)
    return told, others_named(told, read_)


def _later(request: Request, reason: str) -> Problem:
    _count(request, "unavailable")
    return Problem("unavailable", reason, headers={"Retry-After": "2"})


def _receipt(request: Request, taken: Taken) -> Receipt:
    _count(request, taken.value)
    return Receipt(status=taken)


def _count(request: Request, became: str) -> None:
    request.app.state.metrics.webhooks.labels(became).inc()
