"""Acting where one looks: from lists, on the page of maintenance, on dead letters."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from evosaga.events import streams
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import OPERATOR, OUR_KEY, OURS
from tests.api.pages import look, made, parked, send, signed_in
from tests.api.standing import ONES
from tests.support.driving import create, outcome
from tests.support.waiting import eventually

database_url, redis, evolution, settings, parts, address_ = ONES


@pytest.fixture
async def ana(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's browser."""
    async with signed_in(address_, OPERATOR) as client:
        yield client


@pytest.fixture
async def ours(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in(address_, OUR_KEY) as client:
        yield client


async def test_selected_sagas_are_replayed_after_a_page_that_names_the_clinics(
    ana: httpx.AsyncClient, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    stuck = [await parked(parts, evolution, name=name) for name in ("Odonto Vida", "Sol")]
    done = await made(parts, name="Completed")
    front = await look(ana, "/")
    assert "(2) Now" in front.text
    listed = await look(ana, "/ui/sagas?status=failed")
    boxes = {f["value"] for f in listed.all("input") if f.get("type") == "checkbox"}
    assert {str(saga.saga_id) for saga in stuck} <= boxes
    ids = "&".join(f"id={saga.saga_id}" for saga in (*stuck, done))
    path = f"/ui/selected-sagas?do=replay&{ids}"
    plan = await look(ana, path)
    assert "Replay 2 sagas?" in plan.text
    for name in ("Odonto Vida", "Sol", "Completed"):
        assert name in plan.text
    evolution.disarm()
    hidden = {f["name"]: f["value"] for f in plan.all("input") if f.get("type") == "hidden"}
    for _ in range(2):  # a second click does nothing
        answer = await ana.post("/ui/selected-sagas", data=hidden | {"reason": "it is back"})
        assert answer.status_code in (303, 409), answer.text
    for saga in stuck:
        assert (await outcome(parts.pool, str(saga.saga_id), 60)).status == "compensated"


async def test_a_selection_that_makes_no_sense_is_refused(
    ana: httpx.AsyncClient, ours: httpx.AsyncClient, parts: AppContext
) -> None:
    theirs = await made(parts)
    many = "&".join(f"id={uuid.uuid4()}" for _ in range(51))
    for client, query, status in (
        (ana, "do=replay", 400),
        (ana, f"do=explode&id={theirs.saga_id}", 400),
        (ana, f"do=cancel&{many}", 400),
        (ana, "do=cancel&id=nonsense", 404),
        (ours, f"do=cancel&id={theirs.saga_id}", 404),
    ):
        await look(client, f"/ui/selected-sagas?{query}", status)
    answer = await ana.post("/ui/selected-sagas", data={"do": "cancel", "ids": "x"})
    assert answer.status_code == 403, "no token of the session"


async def test_dead_letters_are_sent_again_or_discarded(
    ana: httpx.AsyncClient, ours: httpx.AsyncClient, parts: AppContext
) -> None:
    mended = create(name="Odonto Vida") | {"type": "integration.create"}
    sent = json.dumps(mended)
    reason: dict[Any, Any] = {
        "code": "too_early",
        "message": "it came too early",
        "deliveries": "1",
    }
    redis: Any = parts.redis
    first = await redis.xadd(streams.DEAD_COMMANDS, {"data": sent, **reason})
    second = await redis.xadd(streams.DEAD_COMMANDS, {"data": "nonsense", **reason})
    page = await look(ana, "/ui/letters")
    assert "Odonto Vida" in page.text
    assert "It came too early." in page.text
    await look(ours, "/ui/letters", 404)
    chosen = f"letter={first.decode()}"
    assert "Odonto Vida" in (await look(ana, f"/ui/selected-letters?do=send&{chosen}")).text
    answer = await send(ana, f"/ui/selected-letters?do=send&{chosen}")
    assert answer.headers["location"] == "/ui/letters?sent=1"
    assert (await outcome(parts.pool, mended["id"], 30)).status == "completed"
    answer = await send(ana, f"/ui/selected-letters?do=discard&letter={second.decode()}")
    assert "1 discarded." in (await look(ana, answer.headers["location"])).text
    left = await redis.xrange(streams.DEAD_COMMANDS)
    assert not {first, second} & {id_ for id_, _ in left}
    await look(ana, f"/ui/selected-letters?do=send&{chosen}&letter=nonsense", 400)


async def test_comparing_and_reconnecting_are_made_due_at_once(
    ana: httpx.AsyncClient, ours: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts, organization_id=str(OURS), name="Odonto Vida")
    token = (await look(ana, "/ui/upkeep")).field("csrf")
    answer = await ana.post("/ui/upkeep/compare", data={"csrf": token})
    if parts.settings.reconcile_every > 0:
        assert "being compared" in (await look(ana, answer.headers["location"])).text
        due = "SELECT next_at <= now() FROM evosaga.chores WHERE name = 'reconcile'"
        assert await parts.pool.fetchval(due) or await parts.pool.fetchval(
            "SELECT last_run IS NOT NULL FROM evosaga.chores WHERE name = 'reconcile'"
        )
    else:
        assert "This job is off" in answer.text
    assert (await ours.post("/ui/upkeep/compare", data={"csrf": token})).status_code == 403
    path = f"/ui/upkeep/reconnect?instance={saga.instance_name}"
    assert "None of them can be reconnected" in (await look(ana, path)).text
    await parts.pool.execute(
        "INSERT INTO evosaga.connections (integration_id, state, looks, next_reconnect_at) "
        "VALUES ($1, 'down', 3, now() + interval '1 hour') ON CONFLICT (integration_id) "
        "DO UPDATE SET state = 'down'",
        saga.saga_id,
    )
    assert "Odonto Vida" in (await look(ours, path)).text
    page = await look(ana, "/ui/integrations?attention=1")
    assert "Odonto Vida" in page.text


async def test_a_repair_names_the_clinic_and_what_will_happen_first(
    ana: httpx.AsyncClient, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    saga = await made(parts, name="Odonto Vida", channel="WHATSAPP-BAILEYS")
    path = f"/ui/upkeep/repair?organization={saga.organization_id}"
    assert "The stores agree" in (await look(ana, path)).text
    evolution.drop(str(saga.instance_name))
    plan = await look(ana, path)
    assert "Repair 1 drift?" in plan.text
    assert "Odonto Vida" in plan.text
    hidden = {f["name"]: f["value"] for f in plan.all("input") if f.get("type") == "hidden"}
    drifts = f"missing {saga.instance_name}\nmissing never-seen\n"
    answer = await ana.post("/ui/upkeep/repair", data=hidden | {"drifts": drifts})
    assert answer.status_code == 303, answer.text
    repair = answer.headers["location"].rpartition("/")[2]
    assert (await outcome(parts.pool, repair, 30)).status == "completed"
    await look(ana, "/ui/upkeep/repair?organization=nonsense", 404)


async def test_workers_are_for_operators(
    ana: httpx.AsyncClient, ours: httpx.AsyncClient, parts: AppContext
) -> None:
    async def alive() -> bool:
        return "1 worker is alive" in (await look(ana, "/ui/workers")).text

    await eventually(alive, 10)
    await look(ours, "/ui/workers", 404)
    links = [a.get("href") for a in (await look(ours, "/ui/upkeep")).all("a")]
    assert "/ui/workers" not in links


async def test_a_saga_links_to_its_json_its_steps_and_its_events(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts, name="Odonto Vida", channel="WHATSAPP-BAILEYS")
    page = await look(ana, f"/ui/sagas/{saga.saga_id}")
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"step-pair", "step-evolution", "event-0"} <= ids
    assert "QR code" in page.text
    hrefs = [a["href"] for a in page.all("a") if "href" in a]
    assert f"/sagas/{saga.saga_id}" in hrefs
    one = next(h for h in hrefs if h.endswith("events?cursor=1&limit=1"))
    told = (await ana.get(one)).json()
    assert [event["id"] for event in told["events"]] == [f"{saga.saga_id}:2"]


@pytest.mark.parametrize("period", ["hour", "day", "week", "nonsense"])
async def test_charts_have_axes_over_each_period(
    ana: httpx.AsyncClient, parts: AppContext, period: str
) -> None:
    await made(parts)
    page = await look(ana, f"/ui/now?period={period}")
    plots = [svg["aria-label"] for svg in page.all("svg") if svg.get("class") == "plot"]
    assert len(plots) == 2
    said = period if period in ("day", "week") else "hour"
    assert f"of the last {said}" in plots[0]
    assert "p50 up to" in plots[1]
