"""Pages of one integration, with its three stores and its QR code, and two forms."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import segno
from fastapi import Request
from markupsafe import Markup
from starlette.responses import Response
from uuid_utils.compat import uuid7

from evosaga.events.commands import BadCommand
from evosaga.orchestrator.api.auth import Caller, visible
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages import integration_history, stores
from evosaga.orchestrator.api.pages.forms import (
    Form,
    Reader,
    Submitted,
    absent,
    frame,
    page_router,
    parts,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import HEADERS, ROOT, respond
from evosaga.orchestrator.api.pages.saga_actions import by_form
from evosaga.orchestrator.api.submission import submit
from evosaga.orchestrator.commands.accept import parse_request
from evosaga.orchestrator.queries.sagas import Filter, SagaView, list_sagas
from evosaga.orchestrator.whatsapp.integrations.pairing import current_qr
from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView, find_integration

router: Final = page_router()

_PATIENCE: Final = 5.0
"""Seconds that a page waits for Evolution, of which connecting may take two."""
_OPTIONAL: Final = ("instance_name", "number", "webhook_url", "server")
_FIELDS: Final = ("name", "organization_id", "clinic_id", "channel", *_OPTIONAL)
_HERE: Final = f"{ROOT}/integrations"
_NEW: Final = f"{ROOT}/new-integration"
"""Not below ``_HERE``, where an instance may have any name."""


@router.get(_NEW)
async def new(request: Request, who: Reader) -> Response:
    """The form that creates one."""
    return _form(request, who, Form({"id": str(uuid7())}), "")


@router.post(_NEW)
async def create(request: Request, who: Reader, submitted: Submitted) -> Response:
    """Publish the command, and redirect to its saga."""
    organization = str(who.organization_id or submitted["organization_id"])
    data: dict[str, Any] = {
        "organization_id": organization,
        "clinic_id": submitted["clinic_id"],
        "name": submitted["name"],
        "channel": submitted["channel"] or "WHATSAPP-BAILEYS",
    }
    data |= {name: submitted[name] for name in _OPTIONAL if submitted[name]}
    here = parts(request)
    command = by_form(who, submitted, "integration.create", data)
    try:
        organization_id: UUID = parse_request(here.registry, command).input.organization_id
        accepted = await submit(here, who, command, organization_id)
    except BadCommand as error:
        return _form(request, who, submitted, error.message, wrong_fields(error.message))
    return see_other(f"{ROOT}/sagas/{accepted.saga_id}")


def wrong_fields(message: str) -> dict[str, str]:
    """The sentences of a refusal by the field of the form that each is about. Pure."""
    found: dict[str, str] = {}
    for part in message.split("; "):
        name, colon, said = part.partition(": ")
        if colon and name in _FIELDS:
            found.setdefault(name, said)
    return found


def _form(
    request: Request,
    who: Caller,
    given: Form,
    wrong: str,
    fields: Mapping[str, str] | None = None,
) -> Response:
    return respond(
        "create.html",
        422 if wrong else 200,
        **frame(request, who, "integrations"),
        given=given,
        wrong=wrong,
        wrongs=fields or {},
        webhooks=bool(parts(request).services.webhook_hosts),
        servers=list(parts(request).services.servers),
    )


@router.get(_HERE + "/{instance_name}")
async def one(request: Request, who: Reader, instance_name: str) -> Response:
    """The page of one integration."""
    content = await _content(request, who, instance_name)
    return respond("integration.html", **frame(request, who, "integrations"), **content)


@router.get(_HERE + "/{instance_name}/stores")
async def one_again(request: Request, who: Reader, instance_name: str) -> Response:
    """The fragment with the three stores, read again."""
    content = await _content(request, who, instance_name)
    return respond("integration_stores.html", **frame(request, who, "integrations"), **content)


@router.get(_HERE + "/{instance_name}/pairing")
async def pairing(request: Request, who: Reader, instance_name: str) -> Response:
    """The fragment with the current QR code, until the phone is paired."""
    here = parts(request)
    if "hx-request" in request.headers and not await _may_see(here, who, instance_name):
        # It was deleted since the page was made, so the browser reloads the page.
        return Response(status_code=204, headers={**HEADERS, "HX-Refresh": "true"})
    shown = await _pairing(here, await _its_row(request, who, instance_name))
    row = await _its_row(request, who, instance_name)  # pairing may have updated it
    context = frame(request, who, "integrations") | shown
    sagas, _ = await list_sagas(here.pool, _about(who, instance_name), limit=10)
    leaving = integration_history.leaving_said(row, sagas)
    return respond(
        "integration_pairing.html", **context, row=row, name=instance_name, leaving=leaving
    )


@router.post(_HERE + "/{instance_name}/pairing")
async def pair_again(
    request: Request, who: Reader, submitted: Submitted, instance_name: str
) -> Response:
    """Ask Evolution for a new series of codes after the last one has expired."""
    row = await _its_row(request, who, instance_name)
    await _pairing(parts(request), row, again=True)
    return see_other(f"{_HERE}/{quote(instance_name, safe='')}")


@router.get(_HERE + "/{instance_name}/delete")
async def deletion(request: Request, who: Reader, instance_name: str) -> Response:
    """What a delete would do."""
    row = await find_integration(parts(request).pool, instance_name)
    if row is None or not visible(who, row.organization_id):
        raise absent("integration")
    return respond("delete.html", **frame(request, who, "integrations"), row=row, id=str(uuid7()))


@router.post(_HERE + "/{instance_name}/delete")
async def delete(
    request: Request, who: Reader, submitted: Submitted, instance_name: str
) -> Response:
    """Publish the command, and redirect to its saga."""
    row = await _its_row(request, who, instance_name)
    data = {"instance_name": instance_name}
    if row.organization_id is not None:
        data["organization_id"] = str(row.organization_id)
    command = by_form(who, submitted, "integration.delete", data)
    accepted = await submit(parts(request), who, command)
    return see_other(f"{ROOT}/sagas/{accepted.saga_id}")


async def _its_row(request: Request, who: Caller, instance_name: str) -> IntegrationView:
    """The row. Raises the same 404 for a missing one and for one of another organization."""
    row = await find_integration(parts(request).pool, instance_name)
    if row is None or not visible(who, row.organization_id):
        raise absent("integration")
    return row


async def _content(request: Request, who: Caller, instance_name: str) -> dict[str, Any]:
    """The page's content. Raises the same 404 for a missing one and for another organization's."""
    here = parts(request)
    row = await find_integration(here.pool, instance_name)
    if row is not None and not visible(who, row.organization_id):
        raise absent("integration")
    sagas, _ = await list_sagas(here.pool, _about(who, instance_name), limit=10)
    if row is None and not any(saga.status != "rejected" for saga in sagas):
        raise absent("integration")
    pairing = await _pairing(here, row) if row else {"pairing": None, "qr": None}
    row = await find_integration(here.pool, instance_name)  # pairing may have updated it
    found = await stores.look(here, instance_name, row, _born(row, sagas))
    busy = any(not saga.over for saga in sagas)
    return {
        "name": instance_name,
        "row": row,
        "told": await integration_history.told(here, row, sagas),
        "busy": busy,
        "leaving": integration_history.leaving_said(row, sagas),
        "stores": found,
        "agreement": stores.agreement(found, busy=busy),
        **pairing,
        "now": await here.pool.fetchval("SELECT now()"),
    }


async def _may_see(here: AppContext, who: Caller, instance_name: str) -> bool:
    row = await find_integration(here.pool, instance_name)
    return row is not None and visible(who, row.organization_id)


def _about(who: Caller, instance_name: str) -> Filter:
    return Filter(organization_id=who.organization_id, instance_name=instance_name)


def _born(row: IntegrationView | None, sagas: list[SagaView]) -> UUID | None:
    """The saga that made the instance: the row has its id; without a row, the newest create."""
    if row is not None:
        return row.id
    created = (s for s in sagas if s.saga == "create-integration" and s.status != "rejected")
    return next((saga.saga_id for saga in created), None)


async def _pairing(
    here: AppContext, row: IntegrationView, *, again: bool = False
) -> dict[str, Any]:
    """The state of pairing. A server that does not answer must not delay the page."""
    if row.instance_name is None or row.status == "deleting":
        return {"pairing": None, "qr": None}
    services = here.services
    try:
        async with asyncio.timeout(_PATIENCE):
            found = await current_qr(
                here.pool,
                here.redis,
                services.servers,
                services.keys,
                row.instance_name,
                again=again,
                watching=True,
            )
    except TimeoutError:
        found = await current_qr(here.pool, here.redis, None, None, row.instance_name)
    code = found.qr.get("code") if found.qr else None
    return {"pairing": found, "qr": _drawn(code) if code else None}


def _drawn(code: str) -> Markup | None:
    """The code as an SVG that we draw: Evolution's picture is not trusted."""
    try:
        made = segno.make(code, error="l", micro=False)
    except segno.DataOverflowError:
        return None
    drawn = made.svg_inline(
        omitsize=True, border=3, dark="#000", light="#fff", svgclass="qr", lineclass=None
    )
    return Markup(drawn)  # noqa: S704  # made by segno: squares, whatever the code says
