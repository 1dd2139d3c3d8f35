"""Every fault of the simulated Evolution server, armed and met over real HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from evosaga.orchestrator.local.evolution import MODES, SimulatedEvolution
from evosaga.sagas.whatsapp.evolution.tls import trusted
from tests.support.waiting import eventually

KEY = "the-global-key"


@pytest.fixture
async def evolution() -> AsyncIterator[SimulatedEvolution]:
    async with SimulatedEvolution(api_key=KEY, pace=0.01, delete_refusal=0.0) as evolution:
        yield evolution


@pytest.fixture
async def client(evolution: SimulatedEvolution) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=evolution.url,
        headers={"apikey": KEY},
        trust_env=False,
        verify=trusted(),
        timeout=5,
    ) as client:
        yield client


async def create(client: httpx.AsyncClient, name: str, **fields: Any) -> httpx.Response:
    body = {"instanceName": name, "integration": "EVOLUTION", **fields}
    return await client.post("/instance/create", json=body)


async def state(client: httpx.AsyncClient, name: str, key: str = KEY) -> int:
    reply = await client.get(f"/instance/connectionState/{name}", headers={"apikey": key})
    return reply.status_code


# -- nothing is done


@pytest.mark.parametrize(
    ("mode", "parameters", "status"),
    [
        ("5xx_before", {"status": 503}, 503),
        ("reject", {"message": "No"}, 400),
        ("401", {}, 401),
        ("429", {"retry_after": 7}, 429),
        ("redirect", {}, 302),
        ("licence", {}, 503),
        ("cors", {}, 500),
        ("ok200_error", {}, 200),
        ("proxy", {"status": 407, "body": "json"}, 407),
        ("no_key", {}, 403),
    ],
)
async def test_an_answer_before_the_effect_leaves_nothing_behind(
    client: httpx.AsyncClient,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
    status: int,
) -> None:
    evolution.arm(mode, operation="create", **parameters)
    assert (await create(client, "a")).status_code == status
    assert not evolution.rows()
    assert not evolution.live()
    [entry] = evolution.journal.requests("create")
    assert (entry.fault, entry.applied, entry.status) == (mode, None, status)
    assert (await create(client, "a")).status_code == 201


async def test_the_answers_carry_what_a_client_needs(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("429", retry_after=7)
    assert (await create(client, "a")).headers["retry-after"] == "7"
    evolution.arm("redirect", location="http://127.0.0.1:1/x")
    assert (await create(client, "a")).headers["location"] == "http://127.0.0.1:1/x"
    evolution.arm("licence")
    assert (await create(client, "a")).json() == {
        "error": "service not activated",
        "code": "LICENSE_REQUIRED",
        "register_url": "https://evolution.example/manager/register",
    }
    evolution.arm("429", retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
    late = (await create(client, "a")).headers["retry-after"]
    assert late == "Wed, 21 Oct 2026 07:28:00 GMT"
    evolution.arm("ok200_error")
    assert (await create(client, "a")).json() == {"error": True, "message": "[object Object]"}


async def test_without_a_licence_only_the_root_answers(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("licence", times=None)
    assert (await client.get("/")).status_code == 200
    assert (await client.get("/instance/fetchInstances")).status_code == 503
    assert await state(client, "any") == 503


async def test_refused_is_a_reset_and_a_hang_is_silence_and_neither_does_anything(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("refuse")
    with pytest.raises(httpx.ReadError):
        await create(client, "a")
    evolution.arm("hang")
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/instance/create", json={"instanceName": "a"}, timeout=0.1)
    assert not evolution.rows()


async def test_a_closed_door_proves_that_nothing_was_sent(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    refusing = asyncio.create_task(evolution.refuse(0.2))

    async def refused() -> bool:
        try:
            async with httpx.AsyncClient(base_url=evolution.url, trust_env=False) as new:
                await new.get("/")
        except httpx.ConnectError:
            return True
        return False

    await eventually(refused)
    await refusing
    assert (await create(client, "a")).status_code == 201


# -- it is done, and the answer is lost


@pytest.mark.parametrize(
    ("mode", "parameters"),
    [
        ("5xx_after", {}),
        ("html502", {}),
        ("cut", {}),
        ("cut", {"bytes": 100}),
        ("hang_after", {}),
        ("trunc", {}),
        ("huge", {"size": 300_000}),
        ("wrong_body", {}),
        ("wrong_body", {"body": {}}),
        ("slow_after", {"seconds": 0.01}),
    ],
)
async def test_a_spoiled_answer_hides_an_effect_that_is_there(
    client: httpx.AsyncClient,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
) -> None:
    evolution.arm(mode, operation="create", **parameters)
    body = {"instanceName": "a", "integration": "EVOLUTION", "token": "mine"}
    if mode in ("cut", "hang_after"):
        with pytest.raises(httpx.TransportError):
            await client.post("/instance/create", json=body, timeout=0.3)
    else:
        reply = await client.post("/instance/create", json=body)
        assert reply.is_server_error == (mode in ("5xx_after", "html502"))
        if mode == "html502":
            assert reply.text.startswith("<html>")
        if mode == "huge":
            assert len(reply.content) > 300_000
        if mode == "wrong_body":
            assert reply.json().get("hash") != "mine"
        if mode == "trunc":
            with pytest.raises(ValueError, match=r"Unterminated|Expecting|Invalid"):
                reply.json()
    assert await state(client, "a", "mine") == 200
    [entry] = evolution.journal.requests("create")
    assert (entry.fault, entry.applied) == (mode, "created")
    assert (entry.answered_at is None) == (mode in ("cut", "hang_after"))


async def test_a_cut_in_the_middle_delivers_the_bytes_before_it(
    evolution: SimulatedEvolution,
) -> None:
    evolution.arm("cut", operation="root", bytes=40)
    host, port = evolution.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(await reader.read()) == 40
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("reply", ["504", "cut", "hang"])
async def test_a_late_create_is_lost_now_and_lands_later(
    client: httpx.AsyncClient, evolution: SimulatedEvolution, reply: str
) -> None:
    evolution.arm("late", operation="create", seconds=0.4, reply=reply)
    body = {"instanceName": "a", "integration": "EVOLUTION", "token": "mine"}
    if reply == "504":
        assert (await client.post("/instance/create", json=body)).status_code == 504
    else:
        with pytest.raises(httpx.TransportError):
            await client.post("/instance/create", json=body, timeout=0.1)
    assert await state(client, "a", "mine") == 404
    await eventually(lambda: "a" in evolution.live())
    await eventually(lambda: evolution.journal.entries[-1].cause == "a late create")
    landed = evolution.journal.entries[-1]
    [asked] = evolution.journal.requests("create")
    assert (asked.applied, landed.applied, landed.status) == (None, "created", 201)
    assert landed.caused_by == asked.sequence
    assert landed.token_hash == asked.token_hash


async def test_a_late_create_meets_the_world_as_it_is_by_then(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("late", operation="create", seconds=0.1)
    await create(client, "a")
    assert (await create(client, "a")).status_code == 201
    await eventually(lambda: evolution.journal.entries[-1].kind == "applied")
    assert evolution.journal.entries[-1].status == 403
    assert evolution.journal.entries[-1].applied is None


async def test_a_caller_that_goes_away_during_the_qr_wait_leaves_an_instance_behind(
    evolution: SimulatedEvolution,
) -> None:
    async with httpx.AsyncClient(
        base_url=evolution.url,
        headers={"apikey": KEY},
        trust_env=False,
        timeout=httpx.Timeout(5, read=0.02),
    ) as hasty:
        with pytest.raises(httpx.ReadTimeout):
            await create(hasty, "a", integration="WHATSAPP-BAILEYS", qrcode=True)
    await eventually(lambda: evolution.journal.requests("create"))
    assert evolution.journal.entries[0].applied == "created"
    assert evolution.live()["a"].state == "connecting"


async def test_half_a_request_does_nothing_and_is_no_request(
    client: httpx.AsyncClient, evolution: SimulatedEvolution, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = evolution.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /instance/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"instanceName":'
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await create(client, "b")).status_code == 201
    assert set(evolution.rows()) == {"b"}
    assert not caplog.records


async def test_a_slow_answer_is_late_and_right(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", seconds=0.15)
    started = time.monotonic()
    assert (await create(client, "a")).status_code == 201
    assert time.monotonic() - started >= 0.15


# -- it goes differently


async def test_400_and_a_removal_later(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("400_async_remove", seconds=0.3, message="Prisma says no")
    reply = await create(client, "a", token="mine")
    assert reply.json()["response"]["message"] == ["Prisma says no"]
    assert await state(client, "a", "mine") == 200
    await eventually(lambda: not evolution.rows() and not evolution.live())
    assert evolution.journal.entries[-1].cause == "the clean-up of a failed create"


async def test_a_rival_with_the_same_name_takes_our_201_away_again(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("create_race", winner="ours")
    assert (await create(client, "a")).status_code == 201
    await eventually(lambda: not evolution.rows() and not evolution.live())


async def test_a_rival_that_was_first_is_killed_by_our_clean_up(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("create_race", winner="theirs")
    assert (await create(client, "a", token="mine")).status_code == 400
    await eventually(lambda: not evolution.rows() and not evolution.live())


async def test_a_race_can_leave_a_memory_half_that_refuses_our_own_token(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("create_race", winner="half")
    assert (await create(client, "a", token="mine")).status_code == 201
    await eventually(lambda: not evolution.rows())
    assert await state(client, "a", "mine") == 401
    assert await state(client, "a") == 200


async def test_a_half_deleted_instance_keeps_its_row(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "a")
    evolution.arm("half_deleted")
    assert (await client.delete("/instance/delete/a")).status_code == 200
    await eventually(lambda: not evolution.live())
    await eventually(lambda: evolution.journal.entries[-1].applied == "removed_from_memory")
    assert "a" in evolution.rows()


async def test_with_the_database_down_delete_says_200_and_deletes_nothing(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "a")
    evolution.arm("db_down", times=None)
    assert (await client.delete("/instance/delete/a")).status_code == 200
    assert (await create(client, "b")).status_code == 400
    assert (await client.get("/instance/fetchInstances")).status_code == 500
    assert (await client.get("/")).status_code == 200
    evolution.disarm()
    assert set(evolution.rows()) == {"a"}
    assert "a" in evolution.live()


async def test_lists_can_be_partial_or_empty(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    for index in range(4):
        await create(client, f"n{index}")
    evolution.arm("list_partial", keep=0.5)
    evolution.arm("list_empty")
    sizes = [len((await client.get("/instance/fetchInstances")).json()) for _ in range(3)]
    assert sizes == [0, 2, 4]


async def test_lists_can_have_the_shape_of_other_releases(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "a", token="mine")
    await create(client, "b", token="yours")
    evolution.arm("list_shape", shape="no_token", only="a")
    (a, b) = (await client.get("/instance/fetchInstances")).json()
    assert (a["name"], a["token"], b["token"]) == ("a", None, "yours")
    evolution.arm("list_shape", shape="nameless", only="b")
    (a, b) = (await client.get("/instance/fetchInstances")).json()
    assert (a["name"], b["name"]) == ("a", None)
    evolution.arm("list_shape", shape="v1")
    (a, _) = (await client.get("/instance/fetchInstances")).json()
    assert (a["instance"]["instanceName"], a["instance"]["apikey"]) == ("a", "mine")
    assert "name" not in a


# -- somebody else acts


async def test_a_stranger_takes_the_name_just_before_us(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("foreign", operation="create", name="wa-*")
    assert (await create(client, "wa-1", token="mine")).status_code == 403
    assert await state(client, "wa-1", "mine") == 401
    assert evolution.journal.entries[0].cause == "a stranger's create"


async def test_removed_by_hand_and_taken_by_a_stranger(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "a", token="mine")
    evolution.drop("a")
    assert await state(client, "a", "mine") == 404
    identity = evolution.foreign("a")
    assert await state(client, "a", "mine") == 401
    own = {"apikey": "mine"}
    assert (await client.delete("/instance/delete/a", headers=own)).status_code == 401
    assert evolution.rows()["a"].instance_id == identity
    with pytest.raises(LookupError):
        evolution.drop("nobody")


async def test_a_restart_cuts_what_is_under_way_and_warms_up_slowly(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "a")
    evolution.arm("hang_before", operation="fetch")
    hanging = asyncio.create_task(client.get("/instance/fetchInstances"))
    await eventually(lambda: evolution.fired.get("hang_before"))
    await evolution.restart(warmup=0.2)
    with pytest.raises(httpx.TransportError):
        await hanging
    filtered = {"instanceName": "a"}
    reply = await client.get("/instance/fetchInstances", params=filtered)
    assert reply.status_code == 404
    assert len((await client.get("/instance/fetchInstances")).json()) == 1
    await eventually(lambda: "a" in evolution.live())


async def test_a_restart_loses_removals_and_a_paired_phone_comes_back(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "phone", integration="WHATSAPP-BAILEYS", qrcode=True)
    evolution.pair("phone")
    await eventually(lambda: evolution.rows()["phone"].state == "open")
    await create(client, "leaving")
    evolution.arm("delete_async", seconds=5)
    await client.delete("/instance/delete/leaving")
    evolution.arm("restart", operation="connectionState", warmup=0, down=0.05)
    with pytest.raises(httpx.TransportError):
        await state(client, "phone")
    await eventually(lambda: "phone" in evolution.live())
    await eventually(lambda: evolution.live()["phone"].state == "open")
    assert "leaving" in evolution.rows()


async def test_a_backup_brings_the_dead_back_and_loses_the_young(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "old", token="old-token")
    evolution.snapshot()
    evolution.drop("old")
    await create(client, "young")
    await evolution.restore()
    assert set(evolution.rows()) == set(evolution.live()) == {"old"}
    assert await state(client, "old", "old-token") == 200
    told = [(e.name, e.applied) for e in evolution.journal if e.cause == "restored from a backup"]
    assert told == [("young", "removed"), ("old", "created")]


async def test_an_unreachable_whatsapp_makes_a_hot_loop_and_it_ends_with_it(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "phone", integration="WHATSAPP-BAILEYS", qrcode=True)
    evolution.pair("phone")
    evolution.whatsapp(reachable=False)
    seen: list[str] = []

    def flaps() -> bool:
        seen.append(evolution.live()["phone"].state)
        return {"connecting", "close"} <= set(seen)

    await eventually(flaps, every=0.002)
    evolution.whatsapp(reachable=True)
    await eventually(lambda: evolution.live()["phone"].state == "open")


# -- arming


async def test_a_fault_strikes_so_often_and_where_it_was_told_to(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", name="b", times=2)
    answers = [(await create(client, name)).status_code for name in ("a", "b", "b", "b")]
    assert answers == [201, 500, 500, 201]
    assert evolution.fired == {"5xx_before": 2}
    evolution.arm("5xx_before", times=None)
    evolution.disarm()
    assert await state(client, "a") == 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mode": "nonsense"}, "unknown mode"),
        ({"mode": "list_empty", "operation": "create"}, "can't strike"),
        ({"mode": "slow", "operation": "nowhere"}, "unknown operation"),
        ({"mode": "slow", "seconds": "soon"}, "must be a number"),
        ({"mode": "slow", "minutes": 1}, "no parameter 'minutes'"),
        ({"mode": "late", "reply": "maybe"}, "must be one of"),
        ({"mode": "slow", "times": 0}, "times must be 1 or more"),
        ({"mode": "5xx_after", "status": 42}, "must be an HTTP status"),
    ],
)
def test_arming_nonsense_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    evolution = SimulatedEvolution(api_key=KEY)
    with pytest.raises(ValueError, match=sentence):
        evolution.arm(**arguments)


# -- the control routes


async def test_faults_can_be_armed_and_counted_over_http(client: httpx.AsyncClient) -> None:
    armed = await client.post(
        "/__control__/faults",
        json={"mode": "5xx_after", "operation": "create", "name": "a", "times": 2, "status": 503},
    )
    assert armed.json()["parameters"] == {"status": 503}
    assert (await create(client, "a")).status_code == 503
    told = (await client.get("/__control__/faults")).json()
    assert [(fault["left"], fault["fired"]) for fault in told["armed"]] == [(1, 1)]
    assert told["fired"] == {"5xx_after": 1}
    cleared = (await client.delete("/__control__/faults")).json()
    assert cleared == {"armed": [], "fired": {"5xx_after": 1}}
    assert set((await client.get("/__control__/modes")).json()) == set(MODES)


async def test_all_that_happens_to_an_instance_can_be_done_over_http(
    client: httpx.AsyncClient,
) -> None:
    async def control(route: str, **body: Any) -> dict[str, Any]:
        reply = await client.post(f"/__control__/{route}", json=body)
        assert reply.status_code == 200, reply.text
        views: dict[str, Any] = reply.json()
        return {view["name"]: view["state"] for view in views.get("live", ())}

    await create(client, "phone", integration="WHATSAPP-BAILEYS", qrcode=True)
    assert await control("pair", name="phone", jid="5511900000000") == {"phone": "open"}
    assert await control("logout", name="phone", code=401) == {"phone": "close"}
    assert await control("whatsapp", reachable=True) == {"phone": "close"}
    assert set(await control("snapshot")) == {"phone"}
    assert set(await control("foreign", name="stranger")) == {"phone", "stranger"}
    assert set(await control("drop", name="phone")) == {"stranger"}
    assert set(await control("half-delete", name="stranger", keep="row")) == set()
    assert set(await control("restart", warmup=0)) == {"stranger"}
    assert set(await control("restore")) == {"phone"}
    assert await control("refuse", seconds=0.01) == {"phone": "close"}
    views = (await client.get("/__control__/instances")).json()
    assert [row["name"] for row in views["rows"]] == ["phone"]
    journal = (await client.get("/__control__/journal")).json()
    assert journal[0]["applied"] == "created"
    rest = (await client.get("/__control__/journal?since=1")).json()
    assert rest == journal[1:]


@pytest.mark.parametrize(
    ("method", "route", "body", "sentence"),
    [
        ("POST", "pair", {}, "name must be a text"),
        ("POST", "pair", {"name": "nobody"}, "there is no instance 'nobody' in memory"),
        ("POST", "drop", {"name": "a", "x": 1}, "unknown field 'x'; there are name"),
        ("POST", "restart", {"down": -1}, "down must be a number, 0 or more"),
        ("POST", "whatsapp", {"reachable": "yes"}, "reachable must be true or false"),
        ("POST", "faults", {"mode": "slow", "times": 0}, "times must be 1 or more"),
        ("POST", "faults", [1], "the body must be a JSON object"),
    ],
)
async def test_bad_control_input_is_one_clear_sentence(
    client: httpx.AsyncClient, method: str, route: str, body: object, sentence: str
) -> None:
    reply = await client.request(method, f"/__control__/{route}", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith(sentence)


async def test_an_unknown_control_route_names_those_that_exist(client: httpx.AsyncClient) -> None:
    reply = await client.get("/__control__/nothing")
    assert reply.status_code == 404
    assert "POST /__control__/faults" in reply.json()["error"]


@pytest.mark.parametrize(
    ("after", "webhook", "settings"),
    [("instance", False, False), ("webhook", True, False), ("settings", True, True)],
)
async def test_a_kill_between_the_rows_of_a_create_leaves_what_was_written(
    client: httpx.AsyncClient,
    evolution: SimulatedEvolution,
    after: str,
    webhook: bool,
    settings: bool,
) -> None:
    evolution.arm("kill", operation="create", after=after)
    with pytest.raises(httpx.HTTPError):
        await create(client, "a", webhook={"url": "http://192.0.2.1:9", "events": []})
    await eventually(lambda: "a" in evolution.live())
    row = evolution.rows()["a"]
    assert (row.webhook, row.settings) == (webhook, settings)
    found = await client.get("/webhook/find/a")
    assert (found.status_code, found.json() is not None) == (200, webhook)
    [listed] = (await client.get("/instance/fetchInstances")).json()
    assert (listed["Setting"] is not None) == settings
    assert [e.applied for e in evolution.journal.requests("create")] == ["created"]


@pytest.mark.parametrize(
    ("after", "row", "webhook"),
    [("nothing", False, False), ("instance", True, False), ("webhook", True, True)],
)
async def test_a_database_that_is_lost_between_the_rows_leaves_what_was_written(
    client: httpx.AsyncClient, evolution: SimulatedEvolution, after: str, row: bool, webhook: bool
) -> None:
    evolution.arm("db_lost", operation="create", after=after)
    answer = await create(client, "a", webhook={"url": "http://192.0.2.1:9", "events": []})
    assert answer.status_code == 400
    assert "a" in evolution.live(), "and the clean-up could not do its work either"
    assert ("a" in evolution.rows()) == row
    assert not row or evolution.rows()["a"].webhook == webhook
    assert not row or not evolution.rows()["a"].settings


async def test_what_is_in_memory_alone_opens_to_the_global_key_and_to_no_other(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("db_lost", operation="create", after="nothing")
    await create(client, "a", token="its-own-token")
    own = {"apikey": "its-own-token"}
    for method, path in (("GET", "connectionState"), ("DELETE", "delete")):
        answer = await client.request(method, f"/instance/{path}/a", headers=own)
        assert answer.status_code == 401
    assert (await client.get("/instance/fetchInstances")).json() == []
    assert (await client.get("/instance/fetchInstances?instanceName=a")).json() == []
    assert (await client.delete("/instance/delete/a")).status_code == 200
    await eventually(lambda: not evolution.live())


async def test_over_the_control_routes_a_database_goes_away_and_rows_are_lost(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "a", webhook={"url": "http://192.0.2.1:9", "events": []})
    for row in ("webhook", "settings"):
        lost = await client.post("/__control__/lose", json={"name": "a", "row": row})
        assert lost.json()["rows"][0][row] is False
    assert (await client.get("/webhook/find/a")).content == b"null"
    assert (await client.get("/settings/find/a")).content == b"null"
    odd = await client.post("/__control__/lose", json={"name": "a", "row": "instance"})
    assert odd.status_code == 400
    await client.post("/__control__/database", json={"away": 60})
    assert (await client.get("/instance/fetchInstances")).status_code == 500
    assert (await client.delete("/instance/delete/a")).status_code == 200
    assert "a" in evolution.live(), "it says so, and deletes nothing"
    await client.post("/__control__/database", json={"away": 0})
    assert (await client.get("/instance/fetchInstances")).status_code == 200


async def test_settings_are_set_all_at_once_and_headers_stay_where_none_are_given(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(
        client, "a", webhook={"url": "http://192.0.2.1:9", "events": [], "headers": {"X": "1"}}
    )
    given = {"url": "http://192.0.2.1:8", "enabled": True, "events": ["CALL"]}
    answer = await client.post("/webhook/set/a", json={"webhook": given})
    assert (answer.status_code, answer.json()["headers"]) == (201, {"X": "1"})
    assert (await client.post("/settings/set/a", json={"rejectCall": True})).status_code == 400
    every = {
        "rejectCall": True,
        "groupsIgnore": False,
        "alwaysOnline": False,
        "readMessages": False,
        "readStatus": False,
        "syncFullHistory": False,
        "wavoipToken": "",
    }
    assert (await client.post("/settings/set/a", json=every)).status_code == 201
    assert (await client.get("/settings/find/a")).json()["rejectCall"] is True
