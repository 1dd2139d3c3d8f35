"""The dashboard over HTTP: who may see what, what a form must prove, what every page carries."""

import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from evosaga import migrations
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from tests.api.conftest import OPERATOR, OUR_KEY, OURS, THEIR_KEY, THEIRS, served
from tests.api.pages import PAGES, hasty_parts, look, made, parked, send, signed_in
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    """A worker that gives up soon."""
    async with hasty_parts(settings) as parts:
        yield parts


@pytest.fixture
async def ana(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's browser."""
    async with signed_in(address_, OPERATOR) as client:
        yield client


@pytest.fixture
async def our_browser(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in(address_, OUR_KEY) as client:
        yield client


@pytest.fixture
async def their_browser(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in(address_, THEIR_KEY) as client:
        yield client


# --- forms --------------------------------------------------------------------------------------


async def test_a_form_without_the_sessions_token_does_nothing(
    ana: httpx.AsyncClient, our_browser: httpx.AsyncClient, parts: AppContext
) -> None:
    theirs = (await look(our_browser, "/")).field("csrf")
    wanted = {"clinic_id": str(uuid.uuid4()), "organization_id": str(OURS), "name": "Clínica Sol"}
    for token in ("", "0" * 64, theirs, "ü"):
        fields = wanted | {"csrf": token, "id": str(uuid.uuid4())}
        answer = await ana.post("/ui/new-integration", data=fields)
        assert answer.status_code == 403
        assert "nothing was done" in answer.text
    assert await parts.pool.fetchval("SELECT count(*) FROM evosaga.sagas") == 0


async def test_a_form_sent_twice_is_one_saga(
    our_browser: httpx.AsyncClient, parts: AppContext
) -> None:
    form = await look(our_browser, "/ui/new-integration")
    fields = {
        "csrf": form.field("csrf"),
        "id": form.field("id"),
        "clinic_id": str(uuid.uuid4()),
        "name": "Clínica Sol",
        "channel": "EVOLUTION",
    }
    answers = [await our_browser.post("/ui/new-integration", data=fields) for _ in range(2)]
    assert {a.status_code for a in answers} == {303}
    assert len({a.headers["location"] for a in answers}) == 1
    assert await parts.pool.fetchval("SELECT count(*) FROM evosaga.sagas") == 1
    row = await parts.pool.fetchrow("SELECT organization_id, command_id FROM evosaga.sagas")
    assert row is not None
    assert row["organization_id"] == OURS
    assert row["command_id"].startswith("ours/")  # the history says who it was


async def test_an_organizations_key_creates_for_nobody_else(
    our_browser: httpx.AsyncClient, parts: AppContext
) -> None:
    answer = await send(
        our_browser,
        "/ui/new-integration",
        name="Clínica Sol",
        organization_id=str(THEIRS),
        clinic_id=str(uuid.uuid4()),
    )
    assert answer.status_code == 303
    assert await parts.pool.fetchval("SELECT organization_id FROM evosaga.sagas") == OURS


# --- who sees what ------------------------------------------------------------------------------


async def test_foreign_looks_exactly_like_absent(
    our_browser: httpx.AsyncClient, their_browser: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts, organization_id=str(OURS))
    name, absent_id, absent_name = saga.instance_name, uuid.uuid4(), f"wa-{uuid.uuid4()}"
    token = (await look(their_browser, "/")).field("csrf")
    form = {"csrf": token, "id": str(uuid.uuid4())}
    for method, path, mine, none in [
        ("GET", "/ui/sagas/{}", saga.saga_id, absent_id),
        ("GET", "/ui/sagas/{}/live", saga.saga_id, absent_id),
        ("GET", "/ui/sagas/{}/replay", saga.saga_id, absent_id),
        ("POST", "/ui/sagas/{}/replay", saga.saga_id, absent_id),
        ("GET", "/ui/sagas/{}/cancel", saga.saga_id, absent_id),
        ("POST", "/ui/sagas/{}/cancel", saga.saga_id, absent_id),
        ("GET", "/ui/integrations/{}", name, absent_name),
        ("GET", "/ui/integrations/{}/stores", name, absent_name),
        ("GET", "/ui/integrations/{}/pairing", name, absent_name),
        ("POST", "/ui/integrations/{}/pairing", name, absent_name),
        ("GET", "/ui/integrations/{}/delete", name, absent_name),
        ("POST", "/ui/integrations/{}/delete", name, absent_name),
    ]:
        data = form if method == "POST" else None
        foreign = await their_browser.request(method, path.format(mine), data=data)
        absent = await their_browser.request(method, path.format(none), data=data)
        assert foreign.status_code == absent.status_code == 404, path
        assert foreign.content == absent.content, path
        if method == "GET":
            assert (await our_browser.get(path.format(mine))).status_code == 200, path
    view = await outcome(parts.pool, str(saga.saga_id))
    assert view.status == "completed"  # nothing of what they asked for was done


async def test_no_list_and_no_search_tells_of_another_organization(
    our_browser: httpx.AsyncClient, their_browser: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts, organization_id=str(OURS), name="Clínica Sol")
    told = [str(saga.saga_id), str(saga.instance_name), str(OURS), "Clínica Sol"]
    searches = [f"/ui/search?q={word}" for word in (*told, told[0][:13], told[1][-8:], "clin")]
    filters = [f"/ui/sagas?organization={OURS}", f"/ui/sagas?instance={saga.instance_name}"]
    for path in (*PAGES, *searches, *filters):
        answer = await their_browser.get(path)
        assert answer.status_code == 200, path
        heading = answer.text.replace(path.rpartition("=")[2], "").replace(
            "?search=", ""
        )  # what they typed themselves
        assert not [word for word in told if word in heading], path
    assert str(saga.instance_name) in (await look(our_browser, "/ui/sagas")).text
    assert "1 begun" in (await look(our_browser, "/")).text
    assert "No saga began" in (await look(their_browser, "/")).text


# --- lists --------------------------------------------------------------------------------------


async def test_pages_of_sagas_hang_together(ana: httpx.AsyncClient, parts: AppContext) -> None:
    ids = [str(uuid.uuid4()) for _ in range(120)]
    await parts.pool.execute(_ENDED, ids)
    seen: list[str] = []
    path: str | None = "/ui/sagas?status=completed"
    while path is not None:
        page = await look(ana, path)
        links = [a["href"] for a in page.all("a") if "href" in a]
        seen += [href for href in links if href.startswith("/ui/sagas/")]
        path = next((a["href"] for a in page.all("a") if a.get("rel") == "next"), None)
        assert path is None or "status=completed" in path
    assert sorted(seen) == sorted(f"/ui/sagas/{id_}" for id_ in ids)


async def test_a_search_leads_to_the_saga_whatever_it_is_called(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    command = create() | {"id": "order 66 / ü"}
    await publish(parts.redis, command)
    saga = await outcome(parts.pool, "order 66 / ü", 30)
    for text in (str(saga.saga_id), "order 66 / ü"):
        answer = await ana.get("/ui/sagas", params={"q": text})
        assert answer.headers["location"] == f"/ui/sagas/{saga.saga_id}"
    for text in (str(saga.instance_name), str(saga.organization_id)):
        answer = await ana.get("/ui/sagas", params={"q": text})
        page = await look(ana, answer.headers["location"])
        assert f"/ui/sagas/{saga.saga_id}" in [a.get("href") for a in page.all("a")]
    answer = await ana.get("/ui/sagas?q=nothing")
    assert answer.headers["location"] == "/ui/search?q=nothing"
    assert "Nothing is called" in (await look(ana, answer.headers["location"])).text


async def test_empty_pages_teach(ana: httpx.AsyncClient) -> None:
    assert "evosaga create --help" in (await look(ana, "/ui/sagas")).text
    assert "evosaga create --help" in (await look(ana, "/ui/integrations")).text
    assert "No saga fits" in (await look(ana, "/ui/sagas?status=failed")).text
    assert "No active sagas. No known problems." in (await look(ana, "/")).text


# --- replay and cancel --------------------------------------------------------------------------


async def test_a_replay_shows_its_plan_first_and_says_who_asked(
    ana: httpx.AsyncClient, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    saga = await parked(parts, evolution)
    assert f"/ui/sagas/{saga.saga_id}" in str((await look(ana, "/")).elements)
    plan = await look(ana, f"/ui/sagas/{saga.saga_id}/replay")
    assert "undo first" in plan.text
    evolution.disarm()
    answer = await send(ana, f"/ui/sagas/{saga.saga_id}/replay", reason="it is back")
    assert answer.headers["location"] == f"/ui/sagas/{saga.saga_id}"
    over = await outcome(parts.pool, str(saga.saga_id), 60)
    assert over.status == "compensated"
    page = await look(ana, f"/ui/sagas/{saga.saga_id}")
    assert "replayed by operator" in page.text
    assert "it is back" in page.text


# --- when something behind us is away -----------------------------------------------------------


async def test_the_first_page_says_which_server_is_away(
    ana: httpx.AsyncClient, evolution: SimulatedEvolution, parts: AppContext
) -> None:
    evolution.arm("5xx_before", operation="create", times=None, status=503)
    await publish(parts.redis, create())

    async def held() -> bool:
        return "Sagas wait for it" in (await look(ana, "/")).text

    await eventually(held, 30)
    assert "held" in (await look(ana, "/")).text


async def test_without_redis_the_first_page_says_so_and_what_it_means(
    settings: Settings, own_valkey: LocalServer
) -> None:
    moved = settings.model_copy(update={"redis_url": own_valkey.url})
    async with (
        hasty_parts(moved) as parts,
        served(parts) as address,
        signed_in(address, OPERATOR) as ana,
    ):
        own_valkey.kill()
        page = await look(ana, "/")
        assert "no answer" in page.text
        assert "accepted all the same" in page.text
        assert "Trouble with Redis. No active sagas." in page.text  # what Postgres knows is told


async def test_without_postgres_there_is_a_page_and_no_internals(
    settings: Settings, own_postgres: LocalServer
) -> None:
    await migrations.migrate(own_postgres.url)
    moved = settings.model_copy(update={"database_url": own_postgres.url})
    async with (
        hasty_parts(moved) as parts,
        served(parts) as address,
        signed_in(address, OPERATOR) as ana,
    ):
        own_postgres.kill()
        assert "Postgres does not answer" in (await look(ana, "/")).text
        for path in ("/ui/sagas", "/ui/integrations", f"/ui/sagas/{uuid.uuid4()}"):
            page = await look(ana, path, 503)
            assert "Nothing is lost" in page.text
            assert own_postgres.url not in page.text


async def test_upkeep_shows_drift_and_health_to_whom_it_concerns(
    ana: httpx.AsyncClient,
    our_browser: httpx.AsyncClient,
    their_browser: httpx.AsyncClient,
    parts: AppContext,
) -> None:
    saga = await made(parts, organization_id=str(OURS), name="Clínica Sol")
    name = str(saga.instance_name)
    await parts.pool.execute(_DRIFT, name, OURS)
    await parts.pool.execute(_AWAY, saga.saga_id)
    for browser in (ana, our_browser):
        page = await look(browser, "/ui/upkeep")
        assert "1 thing is not as it should be" in page.text
        assert "The row names an instance that Evolution does not have." in page.text
        assert "Clínica Sol" in page.text
        assert "WhatsApp gave the reason 401" in page.text
    theirs = (await look(their_browser, "/ui/upkeep")).text
    assert "The stores have not been compared yet" in theirs
    assert name not in theirs
    assert "Background jobs" in (await look(ana, "/ui/upkeep")).text
    assert "Background jobs" not in (await look(our_browser, "/ui/upkeep")).text


async def test_what_is_left_of_an_integration_can_still_be_looked_up(
    our_browser: httpx.AsyncClient, their_browser: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts, organization_id=str(OURS))
    await send(our_browser, f"/ui/integrations/{saga.instance_name}/delete")

    async def gone() -> bool:
        page = await look(our_browser, f"/ui/integrations/{saga.instance_name}")
        return "nothing is left of it" in page.text

    await eventually(gone, 30)
    assert (await their_browser.get(f"/ui/integrations/{saga.instance_name}")).status_code == 404


_DRIFT = """
INSERT INTO evosaga.sightings (what, instance_name, organization_id) VALUES ('missing', $1, $2)
"""
_AWAY = "INSERT INTO evosaga.connections (integration_id, state, reason) VALUES ($1, 'down', 401)"
_ENDED = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, created_at)
SELECT id::uuid, 'create-integration', 1, 'completed', id, id, '', id, 0,
       now() - make_interval(secs => (number / 3)::int)
FROM unnest($1::text[]) WITH ORDINALITY AS made (id, number)
"""
