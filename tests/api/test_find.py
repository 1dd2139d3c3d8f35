"""Finding over HTTP and on pages: one search in every header, and a list that can be narrowed."""

import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from evosaga.orchestrator.api.dependencies import AppContext
from tests.api.conftest import OPERATOR, OUR_KEY, OURS, THEIR_KEY, client_with, problem
from tests.api.pages import look, made, signed_in
from tests.api.standing import ONES

database_url, redis, evolution, settings, parts, address_ = ONES


@pytest.fixture
async def ana(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's browser."""
    async with signed_in(address_, OPERATOR) as client:
        yield client


async def test_three_letters_lead_to_the_clinic_and_its_sagas(
    ana: httpx.AsyncClient, address_: str, parts: AppContext
) -> None:
    saga = await made(parts, organization_id=str(OURS), name="Odonto Vida")
    links = [f"/ui/integrations/{saga.instance_name}", f"/ui/sagas/{saga.saga_id}"]
    for text in ("Odo", "vid", str(saga.saga_id)[:13], str(OURS)[:8]):
        page = await look(ana, f"/ui/search?q={text}")
        assert set(links) <= {a.get("href") for a in page.all("a")}, text
        assert page.field("q") == text  # the header keeps what was typed
    page = await look(ana, f"/ui/search?q={str(OURS)[:8]}")
    assert f"/ui/integrations?organization={OURS}" in [a.get("href") for a in page.all("a")]
    answer = await ana.get(f"/ui/search?q={saga.saga_id}")
    assert answer.headers["location"] == links[1]
    async with client_with(address_, OUR_KEY) as ours, client_with(address_, THEIR_KEY) as theirs:
        told = (await ours.get("/search", params={"q": "odo"})).json()
        assert [one["instance_name"] for one in told["integrations"]] == [saga.instance_name]
        assert [one["saga_id"] for one in told["sagas"]] == [str(saga.saga_id)]
        assert (told["count"], told["more"]) == (1, False)
        for text in ("odo", str(saga.saga_id)[:13], str(OURS)[:8]):
            none = (await theirs.get("/search", params={"q": text})).json()
            assert (none["integrations"], none["sagas"]) == ([], []), text
            assert none["organization_id"] is None
        assert problem(await ours.get("/search"))["code"] == "invalid_data"


async def test_the_list_over_http_is_searched_filtered_sorted_and_paged(
    operator: httpx.AsyncClient, parts: AppContext
) -> None:
    for name in ("Busca B", "Busca A", "Busca C"):
        await made(parts, name=name)

    async def names(**query: str) -> list[str]:
        told = (await operator.get("/integrations", params={"search": "busca"} | query)).json()
        return [one["name"] for one in told["integrations"]]

    assert await names(sort="name") == ["Busca A", "Busca B", "Busca C"]
    assert await names() == ["Busca C", "Busca A", "Busca B"]
    assert await names(status="deleting") == await names(attention="true") == []
    assert await names(server="default", search="busca c") == ["Busca C"]
    query = {"search": "busca", "sort": "name", "limit": "2"}
    first = (await operator.get("/integrations", params=query)).json()
    assert (first["count"], first["more"], first["previous"]) == (3, False, None)
    rest = (await operator.get("/integrations", params=query | {"cursor": first["cursor"]})).json()
    assert rest["cursor"] is None
    back = (await operator.get("/integrations", params=query | {"cursor": rest["previous"]})).json()
    assert back["integrations"] == first["integrations"]
    for wrong in ({"status": "fine"}, {"sort": "colour"}, {"search": "x" * 500}):
        assert problem(await operator.get("/integrations", params=wrong))["code"] == "invalid_data"
    answer = await operator.get("/integrations", params={"cursor": first["cursor"]})
    assert problem(answer)["code"] == "bad_cursor"


async def test_the_list_on_the_page_keeps_its_filters_over_its_pages(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    await parts.pool.execute(
        "INSERT INTO healthcare.integrations (organization_id, status, config) "
        "SELECT gen_random_uuid(), 'pending', jsonb_build_object('instance_name', 'folha-' || n, "
        "'name', 'Folha ' || n) FROM generate_series(1, 60) AS n"
    )
    page = await look(ana, "/ui/integrations?search=folha&status=pending&sort=name")
    assert "60 integrations" in page.text
    following = next(a["href"] for a in page.all("a") if a.get("rel") == "next")
    second = await look(ana, following)
    assert second.field("search") == "folha"
    before = next(a["href"] for a in second.all("a") if a.get("rel") == "prev")
    rows = [a["href"] for a in page.all("a") if "/integrations/folha" in a.get("href", "")]
    again = [a["href"] for a in (await look(ana, before)).all("a")]
    assert len(rows) == 50
    assert set(rows) <= set(again)
    for query, said in (
        ("status=fine", "There is no status 'fine'"),
        ("server=moon", "There is no server 'moon'"),
        ("sort=colour", "There is no order 'colour'"),
        ("organization=acme", "An organization is a UUID"),
    ):
        assert said in (await look(ana, f"/ui/integrations?{query}")).text
    assert "No integration fits" in (await look(ana, "/ui/integrations?search=zzz")).text


async def test_a_form_keeps_what_was_typed_and_puts_each_error_at_its_field(
    ana: httpx.AsyncClient,
) -> None:
    form = await look(ana, "/ui/new-integration")
    fields = {"csrf": form.field("csrf"), "id": form.field("id"), "name": "Sol", "number": "12ab"}
    answer = await ana.post(
        "/ui/new-integration",
        data=fields | {"organization_id": "?", "clinic_id": str(uuid.uuid4())},
    )
    assert answer.status_code == 422
    page = type(form)(answer.text)
    wrong = {f["id"] for f in page.all("input") if f.get("aria-invalid") == "true"}
    assert wrong == {"organization_id", "number"}
    said = {p.get("id") for p in page.all("p")}
    assert {"w-organization_id", "w-number"} <= said
    assert (page.field("name"), page.field("number")) == ("Sol", "12ab")
    assert "Error" in page.text


async def test_a_refused_delete_does_not_tell_the_name_of_anothers_clinic(
    address_: str, parts: AppContext
) -> None:
    """Its saga names the instance that was asked for, which is another organization's."""
    saga = await made(parts, organization_id=str(OURS), name="Odonto Secreta")
    async with client_with(address_, THEIR_KEY) as theirs:
        await theirs.delete(f"/integrations/evolution/{saga.instance_name}")
        command = {"type": "integration.delete", "data": {"instance_name": saga.instance_name}}
        await theirs.post("/commands", json=command | {"id": str(uuid.uuid4())})
    async with signed_in(address_, THEIR_KEY) as mallory:
        for path in ("/ui/sagas", f"/ui/search?q={saga.instance_name}"):
            page = await mallory.get(path)
            assert str(saga.instance_name) in page.text, path
            assert "Secreta" not in page.text, path
