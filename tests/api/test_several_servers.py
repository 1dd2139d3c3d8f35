"""Several Evolution servers, as the HTTP API and the dashboard show them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import CREATE, OPERATOR, OURS, asked, problem
from tests.api.pages import look, send, signed_in
from tests.support.driving import outcome
from tests.support.waiting import eventually

KEY = "the-key-of-berlin"


@pytest.fixture
async def berlin() -> AsyncIterator[SimulatedEvolution]:
    async with SimulatedEvolution(api_key=KEY, pace=0.05) as server:
        yield server


@pytest.fixture
def settings(settings: Settings, berlin: SimulatedEvolution) -> Settings:
    """With a second server."""
    servers = {"berlin": {"url": berlin.url, "api_key": KEY}}
    return Settings.model_validate(settings.model_dump() | {"evolution_servers": servers})


async def test_a_create_may_name_a_server_and_everything_finds_it_there(
    operator: httpx.AsyncClient,
    berlin: SimulatedEvolution,
    evolution: SimulatedEvolution,
    address_: str,
) -> None:
    body = asked(server="berlin", channel="WHATSAPP-BAILEYS")
    made = (await operator.post(CREATE, json=body)).json()
    name = made["instance_name"]
    assert list(berlin.rows()) == [name]
    path = f"/integrations/evolution/{name}"
    assert (await operator.get(path)).json()["server"] == "berlin"
    assert (await operator.get(f"{path}/qr")).status_code == 200
    async with signed_in(address_, OPERATOR) as ana:
        page = await look(ana, f"/ui/integrations/{name}")
        assert "All three agree: it is there." in page.text
        assert "berlin" in page.text
    told = (await operator.delete(path)).json()
    assert told["success"]
    assert not berlin.rows()
    assert evolution.journal.requests() == []


async def test_a_server_that_nobody_configured_is_refused_with_the_reason(
    ours: httpx.AsyncClient, berlin: SimulatedEvolution
) -> None:
    told = problem(await ours.post(CREATE, json=asked(server="paris")))
    assert (told["status"], told["code"], told["reason"]) == (409, "refused", "unknown_server")
    assert KEY not in str(told)
    assert berlin.url not in str(told)
    for address in ("https://evil.example", "Berlin", ""):
        told = problem(await ours.post(CREATE, json=asked(server=address)))
        assert told["code"] == "invalid_data"


async def test_each_server_is_shown_with_its_own_state_and_what_waits_for_it(
    operator: httpx.AsyncClient, berlin: SimulatedEvolution, parts: AppContext, address_: str
) -> None:
    berlin.arm("401", times=None)
    stuck = await operator.post(f"{CREATE}?wait=0", json=asked(server="berlin"))
    saga = stuck.json()["saga_id"]
    servers = parts.services.servers
    await eventually(lambda: servers["berlin"].state.state == "open")
    metrics = (await operator.get("/metrics")).text
    assert 'evosaga_evolution_breaker{server="default",state="closed"} 1.0' in metrics
    assert 'evosaga_evolution_breaker{server="berlin",state="closed"} 0.0' in metrics

    async def told() -> bool:  # while it is being tried it is told as that
        why = (await operator.get(f"/sagas/{saga}/why")).json()
        said = "The Evolution server berlin has been in trouble"
        return any(said in one for one in why["details"])

    await eventually(told)
    async with signed_in(address_, OPERATOR) as ana:
        page = await look(ana, "/")
        assert "Evolution berlin" in page.text
        assert "calls are let through" in page.text, "that is the other one"
    berlin.disarm()
    assert (await outcome(parts.pool, saga, 30)).status == "completed"


async def test_the_form_offers_the_servers_where_there_are_several(
    address_: str, parts: AppContext, berlin: SimulatedEvolution
) -> None:
    async with signed_in(address_, OPERATOR) as ana:
        page = await look(ana, "/ui/new-integration")
        offered = [one.get("value") for one in page.all("option")]
        assert {"", "berlin"} <= set(offered)
        body: dict[str, Any] = asked(server="berlin", organization_id=str(OURS))
        answer = await send(ana, "/ui/new-integration", **body)
        saga = answer.headers["location"].rpartition("/")[2]
        done = await outcome(parts.pool, saga)
    assert done.status == "completed"
    assert list(berlin.rows()) == [done.instance_name]
