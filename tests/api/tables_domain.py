"""A domain of one's own beside WhatsApp: tables of a restaurant, for the tests of the API."""

from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, Field

from evosaga import Command, Done, Outcome, Rejected, Saga, StepContext, domain, retryable


class Place(StrEnum):
    WINDOW = "window"
    GARDEN = "garden"


class Table(BaseModel):
    table: int


class Reserve(Command[Table]):
    command = "table.reserve"
    organization_id: UUID
    guests: int = Field(ge=1, le=12)
    place: Place = Place.WINDOW
    dishes: list[str] = Field(default_factory=list)


class Close(Command):
    command = "house.close"


async def reserve(ctx: StepContext[Reserve, None]) -> Outcome:
    return Done({"table": ctx.input.guests + 100})


async def close(_ctx: StepContext[Close, None]) -> Outcome:
    return Rejected("guests_inside", "there are guests inside")


DOMAIN = domain(
    "tables",
    Saga(
        name="reserve-a-table",
        version=1,
        command=Reserve.command,
        input=Reserve,
        result=Table,
        organization=lambda order: order.organization_id,
        steps=(retryable("reserve", do=reserve),),
    ),
    Saga(
        name="close-the-house",
        version=1,
        command=Close.command,
        input=Close,
        business_key=lambda _: "house",
        steps=(retryable("close", do=close),),
    ),
)
