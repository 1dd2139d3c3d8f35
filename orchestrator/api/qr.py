"""The QR code of an integration over HTTP, until its phone is paired."""

from typing import Annotated, Final

from fastapi import APIRouter, Query

from evosaga.orchestrator.api import schemas
from evosaga.orchestrator.api.auth import CurrentCaller
from evosaga.orchestrator.api.dependencies import Context
from evosaga.orchestrator.api.integrations import find
from evosaga.orchestrator.api.openapi import EVERYWHERE, problems
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.whatsapp.integrations.pairing import current_qr

router: Final = APIRouter(tags=["integrations"])


@router.get(
    "/integrations/evolution/{instance_name}/qr",
    summary="The QR code to pair its phone with",
    operation_id="getQrCode",
    responses=problems("unknown_instance", "already_connected", "no_qr_code", *EVERYWHERE),
)
async def qr(
    instance_name: str,
    who: CurrentCaller,
    here: Context,
    number: Annotated[
        str | None, Query(pattern="^[0-9]{6,20}$", description="asks for a pairing code as well")
    ] = None,
    again: Annotated[bool, Query(description="a new series, after the last was shown")] = False,
) -> schemas.QrAnswer:
    """The current one; Evolution is asked when there is none. Good for less than a minute, so ask
    again until it is paired.
    """
    await find(here, who, instance_name)
    services = here.services
    found = await current_qr(
        here.pool,
        here.redis,
        services.servers,
        services.keys,
        instance_name,
        number=number,
        again=again,
        watching=True,  # so that a scan is noticed at once, with or without webhooks
    )
    if found.state == "unavailable":  # the last code may still be valid
        kept = await current_qr(here.pool, here.redis, None, None, instance_name)
        found = kept if kept.state == "qr" else found
    if found.state == "qr" and found.qr is not None:
        code = schemas.QrCode.model_validate(found.qr)
        return schemas.QrAnswer(instance_name=instance_name, message=found.message, qr_code=code)
    code_, wait = _NO_QR.get(found.state, ("no_qr_code", 0))
    headers = {"Retry-After": str(wait)} if wait else {}
    raise Problem(code_, found.message, headers=headers, state=found.state)


_NO_QR: Final = {
    "paired": ("already_connected", 0),
    "not_yet": ("no_qr_code", 3),
    "unavailable": ("unavailable", 5),
}
"""The problem for a state without a code, and the seconds until a retry (0: do not retry)."""
