"""``evosaga alerts``: what is wrong, who is told, and whether they would take it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evosaga.events.alerts import Condition, observe
from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import Evosaga, commandline
from tests.support.receiving import StubReceiver, receiving


@pytest.fixture
async def stub() -> AsyncIterator[StubReceiver]:
    async with receiving() as stub:
        yield stub


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def test_what_is_wrong_is_shown_with_its_cure_and_its_paragraph(
    evosaga: Evosaga, pool: Pool
) -> None:
    assert (await evosaga("alerts")).err.splitlines()[-1].startswith("nothing is wrong")
    found = Condition("workers", "workers", "none alive\x1b[2J", "start one", "critical")
    await observe(pool, [found])
    shown = await evosaga.having(runbook_url="https://wiki.example/rb")("alerts")
    assert "none alive" in shown.out
    assert "\x1b" not in shown.out
    assert "https://wiki.example/rb#workers" in shown.out.replace("\n", "")
    [alert] = (await evosaga("alerts", "--json")).json["alerts"]
    assert (alert["code"], alert["status"]) == ("workers", "pending")


async def test_a_test_message_says_who_took_it(evosaga: Evosaga, stub: StubReceiver) -> None:
    none = await evosaga("alerts", "test")
    assert none.code == 2
    assert "EVOSAGA_ALERTS_URL" in none.err
    telling = evosaga.having(alerts_url=stub.url)
    refused = await telling("alerts", "test")
    assert refused.code == 1
    assert "EVOSAGA_RECEIVERS_PRIVATE" in refused.out
    allowed = telling.having(receivers_private="true")
    assert (await allowed("alerts", "test")).lines == ["alerts: accepted"]
    unknown = await allowed("alerts", "test", "pager")
    assert unknown.code == 2
    assert "there is: alerts" in unknown.err
    shown = (await allowed("alerts", "receivers", "--show-secrets", "--json")).json["receivers"]
    [secret] = shown[0]["secrets"]
    assert stub.received[-1].verifies(secret)


async def test_doctor_names_a_receiver_that_was_given_up(
    evosaga: Evosaga, pool: Pool, stub: StubReceiver
) -> None:
    await pool.execute(
        "INSERT INTO evosaga.deliveries"
        " (receiver, message_id, type, body, tries, error, gave_up_at)"
        " VALUES ('alerts', 'm', 'alert.firing', '{}', 99, 'HTTP 410', now())"
    )
    shown = (await evosaga.having(alerts_url=stub.url)("doctor")).out
    assert "to alerts 1 message given up: HTTP 410" in shown
    assert stub.url not in shown
    assert "no receiver is configured for them" in (await evosaga("doctor")).out
