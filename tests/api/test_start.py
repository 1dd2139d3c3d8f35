"""Starting any saga over HTTP, from Python and by a form; its result, and who may."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from evosaga.client import Client, NotFound, Parked
from evosaga.orchestrator.config.settings import Settings
from tests.api.conftest import CREATE as CREATE_PATH
from tests.api.conftest import OPERATOR, OURS, THEIRS, asked, problem
from tests.api.pages import look, send, signed_in
from tests.api.tables_domain import Close, Place, Reserve, Table
from tests.support.commandline import Evosaga, commandline


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a domain of one's own beside WhatsApp."""
    return settings.model_copy(update={"app": "tests.api.tables_domain:DOMAIN"})


def order(**overrides: Any) -> dict[str, Any]:
    data = {"organization_id": str(OURS), "guests": 4} | overrides
    return {"command": "table.reserve", "data": data}


async def test_a_saga_is_started_waited_for_and_gives_its_result(
    operator: httpx.AsyncClient,
) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    told = (await operator.post("/sagas", json=order(), headers=key)).json()
    assert (told["saga"], told["status"]) == ("reserve-a-table", "completed")
    assert told["result"] == {"table": 104}
    again = (await operator.post("/sagas", json=order(), headers=key)).json()
    assert again == told

    answer = await operator.post("/sagas?wait=0", json=order())
    assert answer.status_code in (200, 202)  # a worker may be done before the answer is read
    assert answer.headers["Location"] == f"/sagas/{answer.json()['saga_id']}"
    # WhatsApp is there as before.
    assert (await operator.post(CREATE_PATH, json=asked())).status_code == 201


async def test_any_saga_is_started_over_http_though_only_the_server_knows_it(
    address_: str, settings: Settings, tmp_path: Path
) -> None:
    laptop = Evosaga(tmp_path).having(url=address_, api_key=OPERATOR)
    known = await laptop("sagas", "--schema")
    here = await commandline(tmp_path, settings).having(app=settings.app)("sagas", "--json")
    assert (await laptop("sagas", "--json")).json == here.json
    assert "reserve-a-table v1  table.reserve" in known.out
    assert '"guests"' in known.out
    data = {"organization_id": str(uuid.uuid4()), "guests": 4}
    given = ("start", "table.reserve", "--data", json.dumps(data), "--id", f"table-{uuid.uuid4()}")
    ran = await laptop(*given)
    assert ran.code == 0, ran.err
    assert ran.lines[-1] == "table: 104", "its result, which only the server can tell"
    again = await laptop(*given, "--json")
    assert (again.code, again.json["result"]) == (0, {"table": 104})
    left = await laptop("start", "table.reserve", "--data", json.dumps(data), "--no-wait", "-j")
    assert (left.code, sorted(left.json)) == (0, ["command_id", "saga_id"])
    (tmp_path / "four.json").write_text(json.dumps(data | {"guests": 40}))
    for words, said in (
        (("table.reserve", "--data", "@four.json"), "guests"),
        (("table.sell",), "table.reserve"),
        (("saga.replay",), "evosaga replay ID"),
        (("table.reserve", "--data", "[1]"), "JSON object"),
    ):
        refused = await laptop("start", *words)
        assert (refused.code, refused.out) == (2, ""), words
        assert said in refused.err


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"command": "table.sell", "data": {}}, 422, "unknown_type", "known: house.close"),
        (order(guests=99), 422, "invalid_data", "guests: "),
        (order(cellar=1), 422, "invalid_data", "cellar: "),
        ({"data": {}}, 422, "wrong_shape", "command: Field required"),
        ({"command": "house.close", "datum": {}}, 422, "wrong_shape", "datum: "),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_field(
    operator: httpx.AsyncClient, body: Any, status: int, code: str, said: str
) -> None:
    answer = await operator.post("/sagas", json=body)
    told = problem(answer)
    assert (answer.status_code, told["code"]) == (status, code)
    assert said in told["detail"]


async def test_an_organization_gives_its_own_commands_where_the_definition_says_so(
    ours: httpx.AsyncClient, theirs: httpx.AsyncClient
) -> None:
    assert (await ours.post("/sagas", json=order())).status_code == 200
    assert problem(await theirs.post("/sagas", json=order()))["code"] == "forbidden"
    assert (await theirs.post("/sagas", json=order(organization_id=str(THEIRS)))).status_code == 200
    close = {"command": "house.close", "data": {}}
    assert problem(await ours.post("/sagas", json=close))["code"] == "forbidden"


async def test_from_python_the_result_has_a_type(address_: str) -> None:
    async with Client(address_, OPERATOR) as client:
        table: Table = await client.start(Reserve(organization_id=OURS, guests=2))
        assert table == Table(table=102)
        with pytest.raises(Parked, match="there are guests inside"):
            await client.start(Close())
        # Parked sagas hold their business key.
        answers = await asyncio.gather(client.start(Close()), return_exceptions=True)
        assert "another saga" in str(answers[0]) or "in_progress" in str(answers[0])
        with pytest.raises(NotFound):
            await client.status("nothing")


async def test_the_form_is_drawn_from_the_model_and_says_which_field_is_wrong(
    address_: str, operator: httpx.AsyncClient
) -> None:
    async with signed_in(address_, OPERATOR) as browser:
        page = await look(browser, "/ui/definitions")
        assert "/ui/start/table.reserve" in str([a.get("href") for a in page.all("a")])
        form = await look(browser, "/ui/start/table.reserve")
        names = [f["name"] for f in (*form.all("input"), *form.all("textarea")) if f.get("name")]
        assert {"field.organization_id", "field.guests", "field.dishes"} <= set(names)

        data = {"field.organization_id": str(OURS), "field.place": str(Place.GARDEN)}
        wrong = await send(browser, "/ui/start/table.reserve", **data, **{"field.guests": "many"})
        assert wrong.status_code == 422
        assert "guests: must be a number" in wrong.text
        for dishes in ("[" * 20_000, "[NaN]", "[1e999]", '[{"a": 1, "a": 2}]', "soup"):
            wrong = await send(
                browser, "/ui/start/table.reserve", **data, **{"field.dishes": dishes}
            )
            assert wrong.status_code == 422, dishes[:9]
            assert "dishes: must be JSON" in wrong.text

        right = {"field.guests": "3", "field.dishes": '["soup"]'}
        made = await send(browser, "/ui/start/table.reserve", **data, **right)
        assert made.status_code == 303, made.text
        assert made.headers["location"].startswith("/ui/sagas/")
        await look(browser, "/ui/start/integration.create", status=404)
