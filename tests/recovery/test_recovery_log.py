"""What the sweep says it did: ``took over`` is for a saga that somebody else had in hand."""

import uuid

import pytest
from structlog.testing import capture_logs

from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.accept import accept, parse_request
from evosaga.orchestrator.config.settings import Settings
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.services import Services
from tests.support.driving import create, outcome


@pytest.mark.parametrize(
    ("owner", "event", "other"),
    [(None, "resumed", "taken_over"), ("a-worker-that-died", "taken_over", "resumed")],
)
async def test_a_take_over_is_told_apart_from_what_was_merely_due(
    settings: Settings, pool: Pool, services: Services, owner: str | None, event: str, other: str
) -> None:
    given = create()
    command = Command(given["id"], given["type"], given["data"])
    await accept(pool, services, owner, [parse_request(discover(), command)])
    with capture_logs() as logs:
        async with running_worker(settings):
            assert (await outcome(pool, str(uuid.UUID(given["id"])))).status == "completed"
    said = {line["event"]: line.get("sagas") for line in logs}
    assert said.get(event) == 1
    assert other not in said
