"""The dashboard over HTTP: signing in, what every page carries, and what a form may not do."""

import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from evosaga.orchestrator.api.auth import COOKIE
from evosaga.orchestrator.api.dependencies import AppContext
from tests.api.conftest import OPERATOR, OUR_KEY
from tests.api.pages import PAGES, Markup, look, made, send, signed_in
from tests.api.standing import ONES

database_url, redis, evolution, settings, parts, address_ = ONES


@pytest.fixture
async def ana(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's browser."""
    async with signed_in(address_, OPERATOR) as client:
        yield client


@pytest.fixture
async def our_browser(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in(address_, OUR_KEY) as client:
        yield client


async def test_whoever_is_not_signed_in_is_sent_to_the_door_and_back(address_: str) -> None:
    async with httpx.AsyncClient(base_url=address_, trust_env=False) as client:
        for path in PAGES:
            answer = await client.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/ui/login")
        asked = await client.get("/ui/sagas?status=failed")
        door = await look(client, asked.headers["location"])
        answer = await client.post("/ui/login", data={"key": OPERATOR, "next": door.field("next")})
        assert answer.headers["location"] == "/ui/sagas?status=failed"


async def test_the_session_cookie_is_out_of_reach(address_: str) -> None:
    async with httpx.AsyncClient(base_url=address_, trust_env=False) as client:
        answer = await client.post("/ui/login", data={"key": OPERATOR})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie  # it would never come back over plain http
        assert OPERATOR not in cookie
        proxied = await client.post(
            "/ui/login", data={"key": OPERATOR}, headers={"X-Forwarded-Proto": "https"}
        )
        assert "secure" in proxied.headers["set-cookie"].lower()


async def test_a_wrong_key_opens_nothing(address_: str) -> None:
    async with httpx.AsyncClient(base_url=address_, trust_env=False) as client:
        answer = await client.post("/ui/login", data={"key": "guessed", "next": "//evil.example"})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        page = Markup(answer.text)
        assert page.field("next") == "/"
        assert "guessed" not in answer.text


async def test_a_forged_session_is_nobody(address_: str) -> None:
    async with signed_in(address_, OUR_KEY) as client:
        body, _, signature = client.cookies[COOKIE].partition(".")
        for forged in (f"{body}.{'0' * len(signature)}", f"{body[:-4]}AAAA.{signature}", "x", "."):
            client.cookies.clear()
            client.cookies.set(COOKIE, forged)
            assert (await client.get("/")).status_code == 303


async def test_signing_out_forgets_the_session(ana: httpx.AsyncClient) -> None:
    token = (await look(ana, "/")).field("csrf")
    answer = await ana.post("/ui/logout", data={"csrf": token})
    assert answer.status_code == 303
    assert COOKIE not in ana.cookies
    assert (await ana.get("/")).status_code == 303


async def test_a_key_in_a_header_may_read_and_is_offered_no_forms(
    operator: httpx.AsyncClient,
) -> None:
    page = await look(operator, "/ui/new-integration")
    assert [f for f in page.all("form") if f.get("method") == "post"] == []


async def test_other_kinds_of_bodies_are_no_forms(ana: httpx.AsyncClient) -> None:
    answer = await ana.post("/ui/logout", json={"csrf": "x"})
    assert answer.status_code == 415
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"\xff\xfe", b"a=%ff", b"csrf=%00", b"&".join([b"a=b"] * 500)):
        answer = await ana.post("/ui/logout", content=body, headers=kind)
        assert answer.status_code in (400, 403)


async def test_what_is_wrong_with_a_form_is_said_and_what_was_typed_is_kept(
    ana: httpx.AsyncClient,
) -> None:
    answer = await send(
        ana,
        "/ui/new-integration",
        name="Clínica Sol",
        organization_id="not a uuid",
        clinic_id=str(uuid.uuid4()),
    )
    assert answer.status_code == 422
    page = Markup(answer.text)
    assert "organization_id" in page.text
    assert page.field("name") == "Clínica Sol"


async def test_how_far_the_house_is_behind_is_for_operators(
    ana: httpx.AsyncClient, our_browser: httpx.AsyncClient
) -> None:
    assert "being accepted" in (await look(ana, "/")).text
    seen = (await look(our_browser, "/")).text
    assert "Evolution" in seen
    assert "being accepted" not in seen
    assert "alive" not in seen


async def test_nonsense_in_an_address_breaks_nothing(
    ana: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for query in (
        "status=nonsense",
        "organization=nonsense",
        "since=nonsense",
        "saga=%00nonsense",
        "cursor=nonsense",
        "cursor=%F0%9F%92%A9",
        f"instance={'x' * 5000}",
        "q=%EF%BF%BF&q=%ED%A0%80",
        "page=1&status=failed&status=running",
    ):
        with subtests.test(query=query[:60]):
            answer = await ana.get(f"/ui/sagas?{query}", follow_redirects=True)
            assert answer.status_code in (200, 400)


async def test_every_page_has_its_headers_and_nothing_inline(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts)
    sagas = [f"/ui/sagas/{saga.saga_id}{rest}" for rest in ("", "/live", "/replay", "/cancel")]
    ours = [f"/ui/integrations/{saga.instance_name}{r}" for r in ("", "/stores", "/delete")]
    for path in (*PAGES, *sagas, *ours, "/ui/sagas/nonsense", "/ui/login"):
        answer = await ana.get(path)
        headers = answer.headers
        assert "default-src 'self'" in headers["content-security-policy"], path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["cache-control"] == "no-store", path
        assert Markup(answer.text).dangers() == [], path


async def test_every_field_has_a_label_and_every_page_one_heading(ana: httpx.AsyncClient) -> None:
    for path in ("/", "/ui/sagas", "/ui/integrations", "/ui/new-integration", "/ui/upkeep"):
        page = await look(ana, path)
        assert len(page.all("h1")) == 1, path
        labelled = {label.get("for") for label in page.all("label")}
        for field in page.all("input") + page.all("select"):
            assert field.get("type") == "hidden" or field.get("id") in labelled, (path, field)
        assert all("aria-label" in nav for nav in page.all("nav")), path
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), path


async def test_the_files_are_served_once_and_nothing_else_is(ana: httpx.AsyncClient) -> None:
    answer = await ana.get("/ui/static/htmx.min.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    again = {"If-None-Match": answer.headers["etag"]}
    assert (await ana.get("/ui/static/htmx.min.js", headers=again)).status_code == 304
    assert "Zero-Clause BSD" in (await ana.get("/ui/static/htmx.LICENSE.txt")).text
    for name in ("../rendering.py", "..%2frendering.py", "%2e%2e/rendering.py", "base.html", ""):
        assert (await ana.get(f"/ui/static/{name}")).status_code == 404


async def test_the_pages_are_no_part_of_the_apis_description(operator: httpx.AsyncClient) -> None:
    paths = (await operator.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/ui")]


async def test_what_can_not_be_replayed_or_cancelled_is_not_offered(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    saga = await made(parts)
    page = await look(ana, f"/ui/sagas/{saga.saga_id}")
    assert not [a for a in page.all("a") if a.get("href", "").endswith(("/replay", "/cancel"))]
    for verb in ("replay", "cancel"):
        asked = await look(ana, f"/ui/sagas/{saga.saga_id}/{verb}")
        assert not [b for b in asked.all("button") if "danger" in b.get("class", "")]
        posted = [f.get("action", "") for f in asked.all("form") if f.get("method") == "post"]
        assert posted == ["/ui/logout"]
        token = asked.field("csrf")
        answer = await ana.post(
            f"/ui/sagas/{saga.saga_id}/{verb}", data={"csrf": token, "id": str(uuid.uuid4())}
        )
        assert answer.status_code == 409
        assert "<h1>" in answer.text


async def test_an_instance_may_be_called_anything(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    await made(parts, instance_name="new")
    assert "Evolution, Postgres and Redis" in (await look(ana, "/ui/integrations/new")).text
