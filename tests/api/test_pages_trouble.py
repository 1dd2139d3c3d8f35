"""What a browser is shown when it asks for what is not there, or sends what is not ours."""

import uuid

import httpx
import pytest

from evosaga.orchestrator.api.dependencies import AppContext
from tests.api.conftest import OPERATOR, THEIR_KEY
from tests.api.pages import look, made, signed_in
from tests.api.standing import ONES
from tests.support.driving import create, outcome, publish

database_url, redis, evolution, settings, parts, address_ = ONES

TROUBLES = [
    ("GET", "/ui", 404),
    ("GET", "/ui/nothing", 404),
    ("GET", "/ui/sagas/nobody-knows", 404),
    ("GET", "/ui/static/nothing.js", 404),
    ("DELETE", "/ui/sagas", 405),
    ("POST", "/", 405),
    ("POST", "/ui/logout", 403),
    ("GET", "/ui/sagas?q=%00", 400),
    ("POST", "/ui/login", 415),
]


async def test_what_goes_wrong_on_a_page_is_a_page(
    address_: str, subtests: pytest.Subtests
) -> None:
    async with signed_in(address_, OPERATOR) as ana:
        for method, path, status in TROUBLES:
            with subtests.test(method=method, path=path):
                form = {"csrf": "old"} if path == "/ui/logout" else None
                answer = await ana.request(method, path, data=form)
                assert answer.status_code == status, answer.text
                assert answer.headers["content-type"].startswith("text/html")
                assert "<h1>" in answer.text
                assert "All times are UTC" in answer.text  # in the house's own frame
                if status == 405:
                    assert "GET" in answer.headers["allow"]


async def test_routes_for_programs_still_answer_with_problems(operator: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/uix", "/sagas/nobody-knows"):
        answer = await operator.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_sagas_page_is_found_by_all_its_names(address_: str, parts: AppContext) -> None:
    command = create() | {"id": f"my own id {uuid.uuid4()}"}
    await publish(parts.redis, command)
    saga = await outcome(parts.pool, command["id"], 30)
    async with signed_in(address_, OPERATOR) as ana:
        for name in (saga.command_id, str(saga.instance_name), str(saga.saga_id).upper()):
            answer = await ana.get(f"/ui/sagas/{name}")
            assert answer.status_code == 303, name
            assert answer.headers["location"] == f"/ui/sagas/{saga.saga_id}"
        assert str(saga.instance_name) in (await look(ana, f"/ui/sagas/{saga.saga_id}")).text
    async with signed_in(address_, THEIR_KEY) as stranger:
        for name in (saga.command_id, str(saga.instance_name), str(saga.saga_id)):
            assert (await stranger.get(f"/ui/sagas/{name}")).status_code == 404


FILTERS = [
    ("status=foo", "There is no status 'foo'; there are running"),
    ("since=yesterday", "'yesterday' is no time"),
    ("organization=acme", "An organization is a UUID, which 'acme' is not"),
    ("stattus=failed", "There is no filter 'stattus'"),
]


async def test_a_filter_that_makes_no_sense_is_said_and_narrows_nothing(
    address_: str, parts: AppContext, subtests: pytest.Subtests
) -> None:
    saga = await made(parts)
    async with signed_in(address_, OPERATOR) as ana:
        for query, said in FILTERS:
            with subtests.test(query=query):
                page = await look(ana, f"/ui/sagas?{query}")
                assert said in page.text
                assert f"/ui/sagas/{saga.saga_id}" in [a.get("href") for a in page.all("a")]
        fits = await look(ana, "/ui/sagas?status=completed&since=3h")
        assert "It was ignored" not in fits.text
        assert f"/ui/sagas/{saga.saga_id}" in [a.get("href") for a in fits.all("a")]
        chosen = [o for o in fits.all("option") if "selected" in o]
        assert [o["value"] for o in chosen if "value" in o] == ["completed", "3h"]


async def test_a_strangers_page_signs_nobody_in(address_: str, subtests: pytest.Subtests) -> None:
    told: list[tuple[dict[str, str], bool]] = [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": address_}, True),
    ]
    async with httpx.AsyncClient(base_url=address_, trust_env=False) as browser:
        for headers, opened in told:
            browser.cookies.clear()
            with subtests.test(headers=headers):
                answer = await browser.post("/ui/login", data={"key": OPERATOR}, headers=headers)
                assert answer.status_code == (303 if opened else 403), answer.text
                assert ("set-cookie" in answer.headers) == opened


async def test_a_form_of_ours_from_elsewhere_does_nothing_even_with_its_token(
    address_: str, parts: AppContext
) -> None:
    async with signed_in(address_, OPERATOR) as ana:
        token = (await look(ana, "/")).field("csrf")
        for path in ("/ui/new-integration", "/ui/logout"):
            fields = {"csrf": token, "id": str(uuid.uuid4())}
            answer = await ana.post(path, data=fields, headers={"Sec-Fetch-Site": "cross-site"})
            assert answer.status_code == 403
            assert "another site" in answer.text
        assert (await ana.get("/")).status_code == 200
