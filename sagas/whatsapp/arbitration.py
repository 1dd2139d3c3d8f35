"""What a create and a delete say when another saga of the integration is in their way.

An organization has one integration and an instance's name has one owner, so each command is
weighed against what is there and against every saga that is still open. With several Evolution
servers a name still has one owner in all of them together, since the key that routing workers read
is found by the name alone: that is stricter than one owner for each (server, name).

A delete waits, a create does not. The aim of a delete is that nothing is there in the end, and
that can be promised whatever the saga ahead does; a create ahead of it is asked to stop. A create
that waited would hold nothing meanwhile, and what it was asked for may be long out of date by then.
"""

from typing import Final
from uuid import UUID

from evosaga.sagas.admission import OTHERS, OnConflict

CREATE_SAGA: Final = "create-integration"
DELETE_SAGA: Final = "delete-integration"
CREATE_BESIDE: Final[OnConflict] = "refuse"
DELETE_BESIDE: Final[OnConflict] = {CREATE_SAGA: "supersede", OTHERS: "wait"}


def business_key(organization_id: UUID) -> str:
    """What only one open saga may hold: an organization's WhatsApp integration."""
    return f"whatsapp/evolution/{organization_id}"
