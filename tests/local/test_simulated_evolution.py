"""The simulated Evolution server behaves as the real 2.3.7 does, seen over real HTTP."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zxingcpp
from aiohttp import web
from PIL import Image

from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp.evolution.tls import trusted
from tests.support.waiting import eventually

KEY = "the-global-key"
PACE = 0.01
BAILEYS = {"integration": "WHATSAPP-BAILEYS"}
EVOLUTION = {"integration": "EVOLUTION"}
UNAUTHORIZED = {"status": 401, "error": "Unauthorized", "response": {"message": "Unauthorized"}}


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[SimulatedEvolution, httpx.AsyncClient]]:
    """A server and a client that holds its global key."""
    settings = {"api_key": KEY, "pace": PACE, "delete_refusal": 0.0, **options}
    async with (
        SimulatedEvolution(**settings) as evolution,
        httpx.AsyncClient(
            base_url=evolution.url, headers={"apikey": KEY}, trust_env=False, verify=trusted()
        ) as client,
    ):
        yield evolution, client


@pytest.fixture
async def evolution_and_client() -> AsyncIterator[tuple[SimulatedEvolution, httpx.AsyncClient]]:
    async with running() as pair:
        yield pair


@pytest.fixture
def evolution(
    evolution_and_client: tuple[SimulatedEvolution, httpx.AsyncClient],
) -> SimulatedEvolution:
    return evolution_and_client[0]


@pytest.fixture
def client(evolution_and_client: tuple[SimulatedEvolution, httpx.AsyncClient]) -> httpx.AsyncClient:
    return evolution_and_client[1]


async def create(client: httpx.AsyncClient, name: str, **fields: Any) -> httpx.Response:
    body = {"instanceName": name, **EVOLUTION, **fields}
    return await client.post("/instance/create", json=body)


async def state(client: httpx.AsyncClient, name: str, key: str = KEY) -> httpx.Response:
    path = f"/instance/connectionState/{quote(name, safe='')}"
    return await client.get(path, headers={"apikey": key})


async def shows_qr(client: httpx.AsyncClient, name: str) -> bool:
    return "base64" in (await client.get(f"/instance/connect/{name}")).json()


class Receiver:
    """A webhook target that keeps what it gets and answers as told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.url = ""

    async def take(self, request: web.BaseRequest) -> web.Response:
        self.bodies.append(json.loads(await request.read()))
        self.requests.append((request.path, dict(request.headers)))
        return web.Response(status=self.status)

    def events(self) -> list[str]:
        return [body["event"] for body in self.bodies]

    def data(self, event: str) -> list[Any]:
        return [body["data"] for body in self.bodies if body["event"] == event]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = web.Server(receiver.take, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield receiver
    listener.close()
    server.pre_shutdown()
    await server.shutdown(1)


# -- create


async def test_a_plain_create_answers_in_evolutions_own_shape(client: httpx.AsyncClient) -> None:
    reply = await create(client, "clinic-1", token="T-1", **BAILEYS, qrcode=False)
    assert reply.status_code == 201
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    identity = reply.json()["instance"]["instanceId"]
    assert reply.text == (
        '{"instance":{"instanceName":"clinic-1","instanceId":"' + identity + '",'
        '"integration":"WHATSAPP-BAILEYS","webhookWaBusiness":null,"accessTokenWaBusiness":"",'
        '"status":"close"},"hash":"T-1","webhook":{},"websocket":{},"rabbitmq":{},"nats":{},'
        '"sqs":{},"settings":{"rejectCall":false,"msgCall":"","groupsIgnore":false,'
        '"alwaysOnline":false,"readMessages":false,"readStatus":false,"syncFullHistory":false,'
        '"wavoipToken":""}}'
    )


async def test_passive_instances_are_open_client_and_get_an_upper_case_token(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    made = (await create(client, "passive")).json()
    assert made["instance"]["status"] == "open"
    assert made["hash"] == made["hash"].upper()
    assert len(made["hash"]) == 36
    business = await create(client, "b", integration="WHATSAPP-BUSINESS", token="t", number="551")
    assert business.json()["instance"] | {"instanceId": ""} == {
        "instanceName": "b",
        "instanceId": "",
        "integration": "WHATSAPP-BUSINESS",
        "webhookWaBusiness": f"{evolution.url}/webhook/meta",
        "accessTokenWaBusiness": "evolution",
        "status": "open",
    }


async def test_the_qr_of_create_is_a_picture_that_a_phone_can_read(
    client: httpx.AsyncClient,
) -> None:
    reply = await create(client, "qr", **BAILEYS, qrcode=True, number="5511988887777")
    made = reply.json()
    assert made["instance"]["status"] == "connecting"
    assert list(made["qrcode"]) == ["pairingCode", "code", "base64", "count"]
    assert len(made["qrcode"]["pairingCode"]) == 8
    assert made["qrcode"]["count"] == 1
    assert made["qrcode"]["code"].startswith("2@")
    assert made["qrcode"]["code"].count(",") == 3
    prefix, _, encoded = made["qrcode"]["base64"].partition(",")
    assert prefix == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert [seen.text for seen in zxingcpp.read_barcodes(picture)] == [made["qrcode"]["code"]]
    assert 12_000 < len(made["qrcode"]["base64"]) < 15_000


async def test_a_pairing_code_comes_only_with_a_number(client: httpx.AsyncClient) -> None:
    made = (await create(client, "plain", **BAILEYS, qrcode=True)).json()
    assert made["qrcode"]["pairingCode"] is None


async def test_a_qr_that_does_not_come_in_time_is_a_count_of_zero(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("no_qr", operation="create")
    reply = await create(client, "no-qr", **BAILEYS, qrcode=True)
    assert reply.status_code == 201
    assert reply.json()["qrcode"] == {"count": 0}


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"integration": "evolution"}, 400, ["Invalid integration"]),
        ({"integration": "WHATSAPP-BUSINESS"}, 400, ["token is required"]),
        ({"integration": "WHATSAPP-BUSINESS", "token": "t"}, 400, ["number is required"]),
        ({"proxyHost": "10.0.0.1"}, 400, ["Invalid proxy"]),
        ({"instanceName": ""}, 400, [['The "instanceName" cannot be empty']]),
        (
            {"number": "x"},
            400,
            [['number does not match pattern "^\\\\d+[\\\\.@\\\\w-]+"']],
        ),
        (
            {"webhook": {"url": "http://127.0.0.1:9"}},
            400,
            ["Cannot read properties of undefined (reading 'length')"],
        ),
    ],
)
async def test_a_refused_create_says_why_in_one_of_three_shapes(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, message: object
) -> None:
    reply = (
        await create(client, "refused", **fields)
        if "instanceName" not in fields
        else (await client.post("/instance/create", json={**EVOLUTION, **fields}))
    )
    assert reply.status_code == status
    assert reply.json() == {
        "status": 400,
        "error": "Bad Request",
        "response": {"message": message},
    }


async def test_the_row_of_a_refused_create_is_removed_a_little_later(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("400_async_remove", seconds=0.3)
    assert (await create(client, "short-lived")).status_code == 400
    assert "short-lived" in evolution.rows()
    await eventually(lambda: not evolution.live() and not evolution.rows())


async def test_any_text_is_a_name_but_nothing_else(client: httpx.AsyncClient) -> None:
    odd = "Ação / what? 100%"
    assert (await create(client, odd)).status_code == 201
    assert (await state(client, odd)).json() == {"instance": {"instanceName": odd, "state": "open"}}
    assert (await client.post("/instance/create", json={"instanceName": 5})).status_code == 500
    assert (await create(client, "n" * 256)).status_code == 400


async def test_the_same_name_twice_client_can_kill_the_one_that_got_its_201() -> None:
    async with running(pace=4.0) as (evolution, client):
        both = await asyncio.gather(create(client, "twin"), create(client, "twin"))
        assert sorted(reply.status_code for reply in both) == [201, 400]
        await eventually(lambda: not evolution.live() and not evolution.rows())


async def test_a_create_without_a_name_wipes_somebody_elses_settings(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "victim", webhook={"url": "http://127.0.0.1:9", "events": ["CALL"]})
    reply = await client.post("/instance/create", json=EVOLUTION)
    assert reply.status_code == 400
    assert (await client.get("/webhook/find/victim")).json() is None
    assert "wiped" in [entry.applied for entry in evolution.journal]


async def test_without_saved_instances_a_missing_name_is_in_use() -> None:
    async with running(save_instances=False) as (_, client):
        await create(client, "any")
        reply = await client.post("/instance/create", json=EVOLUTION)
        assert reply.status_code == 403
        assert reply.json()["response"]["message"] == ['This name "undefined" is already in use.']


async def test_an_instance_deleted_during_the_qr_wait_still_answers_201_with_a_qr() -> None:
    async with running(pace=0.1) as (evolution, client):
        under_way = asyncio.create_task(create(client, "gone", **BAILEYS, qrcode=True))
        await eventually(lambda: "gone" in evolution.live())
        assert (await create(client, "gone")).status_code == 403
        assert (await state(client, "gone")).json()["instance"]["state"] == "connecting"
        await eventually(lambda: shows_qr(client, "gone"))
        assert (await client.delete("/instance/delete/gone")).status_code == 200
        await eventually(lambda: not evolution.rows())
        reply = await under_way
        assert reply.status_code == 201
        assert "base64" in reply.json()["qrcode"]
        assert (await state(client, "gone")).status_code == 404


# -- guards


async def test_existence_and_names_in_use_are_told_before_the_key_is_looked_at(
    client: httpx.AsyncClient,
) -> None:
    await create(client, "taken")
    wrong = {"apikey": "wrong"}
    unknown = await client.get("/instance/connectionState/nobody", headers=wrong)
    assert (unknown.status_code, unknown.json()) == (
        404,
        {
            "status": 404,
            "error": "Not Found",
            "response": {"message": ['The "nobody" instance does not exist']},
        },
    )
    body = {"instanceName": "taken", **EVOLUTION}
    in_use = await client.post("/instance/create", json=body, headers=wrong)
    assert in_use.status_code == 403
    assert in_use.json()["response"]["message"] == ['This name "taken" is already in use.']
    free = await client.post("/instance/create", json={"instanceName": "free"}, headers=wrong)
    assert (free.status_code, free.json()) == (401, UNAUTHORIZED)


async def test_an_instances_token_opens_that_instance_and_nothing_else(
    client: httpx.AsyncClient,
) -> None:
    await create(client, "mine", token="mine-token")
    await create(client, "theirs", token="their-token")
    assert (await state(client, "mine", "mine-token")).status_code == 200
    assert (await state(client, "theirs", "mine-token")).json() == UNAUTHORIZED
    other = {"apikey": "their-token"}
    assert (await client.delete("/instance/delete/mine", headers=other)).status_code == 401
    assert (await client.delete("/instance/delete/nobody", headers=other)).status_code == 404
    body = {"instanceName": "new", **EVOLUTION}
    assert (await client.post("/instance/create", json=body, headers=other)).status_code == 401
    own = {"apikey": "mine-token"}
    assert (await client.delete("/instance/delete/mine", headers=own)).status_code == 200


async def test_an_unknown_route_and_broken_json_have_their_own_shapes(
    client: httpx.AsyncClient,
) -> None:
    lost = await client.get("/nowhere")
    assert lost.status_code == 404
    assert lost.json()["response"] == {"message": ["Cannot GET /nowhere"]}
    broken = await client.post(
        "/instance/create", content="{oops", headers={"Content-Type": "application/json"}
    )
    assert broken.status_code == 400
    assert broken.json()["error"] == "Internal Server Error"
    assert isinstance(broken.json()["response"]["message"], str)


async def test_the_root_answers_without_a_key(evolution: SimulatedEvolution) -> None:
    async with httpx.AsyncClient(base_url=evolution.url, trust_env=False) as stranger:
        reply = await stranger.get("/")
    assert reply.status_code == 200
    assert reply.json()["version"] == "2.3.7"


# -- the two views


async def test_the_list_shows_every_field_in_evolutions_order(client: httpx.AsyncClient) -> None:
    await create(client, "listed", token="T", number="5511977776666")
    [element] = (await client.get("/instance/fetchInstances")).json()
    assert " ".join(element) == (
        "id name connectionStatus ownerJid profileName profilePicUrl integration number "
        "businessId token clientName disconnectionReasonCode disconnectionObject "
        "disconnectionAt createdAt updatedAt Chatwoot Proxy Rabbitmq Nats Sqs Websocket "
        "Setting _count"
    )
    assert element["token"] == "T"
    assert element["connectionStatus"] == "open"


async def test_one_name_is_looked_for_in_memory_and_the_list_in_the_database(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "ghost")
    evolution.half_delete("ghost")
    one = await client.get("/instance/fetchInstances", params={"instanceName": "ghost"})
    assert one.status_code == 404
    assert one.json()["response"]["message"] == ['Instance "ghost" not found']
    assert [e["name"] for e in (await client.get("/instance/fetchInstances")).json()] == ["ghost"]
    assert (await state(client, "ghost")).status_code == 404


async def test_without_saved_instances_a_ghost_row_has_no_state_and_can_be_deleted() -> None:
    async with running(save_instances=False) as (evolution, client):
        await create(client, "ghost")
        evolution.half_delete("ghost")
        assert (await state(client, "ghost")).json() == {"instance": {"instanceName": "ghost"}}
        connected = await client.get("/instance/connect/ghost")
        assert connected.json() == {"error": True, "message": "[object Object]"}
        assert (await client.delete("/instance/delete/ghost")).status_code == 200
        await eventually(lambda: not evolution.rows())


async def test_a_half_that_lives_in_memory_only_refuses_even_its_own_token(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "half", token="own")
    evolution.half_delete("half", keep="memory")
    assert (await state(client, "half", "own")).status_code == 401
    assert (await state(client, "half")).status_code == 200


async def test_a_token_lists_all_its_instances_and_fails_on_anothers_name(
    client: httpx.AsyncClient,
) -> None:
    for name in ("one", "two"):
        await create(client, name, token="shared")
    await create(client, "three", token="other")
    key = {"apikey": "shared"}
    listed = (await client.get("/instance/fetchInstances", headers=key)).json()
    assert sorted(element["name"] for element in listed) == ["one", "two"]
    foreign = await client.get("/instance/fetchInstances?instanceName=three", headers=key)
    assert foreign.json() == UNAUTHORIZED


async def test_another_deployments_instance_is_not_listed_but_holds_its_name(
    evolution: SimulatedEvolution, client: httpx.AsyncClient
) -> None:
    evolution.foreign("shared-db", client_name="elsewhere")
    assert (await client.get("/instance/fetchInstances")).json() == []
    assert (await create(client, "shared-db")).status_code == 400
    await eventually(lambda: not evolution.rows(), message="removal asks no owner")


# -- delete


async def test_delete_answers_before_it_deletes(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "leaving", token="own")
    evolution.arm("delete_async", seconds=0.3)
    own = {"apikey": "own"}
    reply = await client.delete("/instance/delete/leaving", headers=own)
    assert reply.text == (
        '{"status":"SUCCESS","error":false,"response":{"message":"Instance deleted"}}'
    )
    assert (await state(client, "leaving")).status_code == 200
    await eventually(lambda: "leaving" not in evolution.live())
    await eventually(lambda: "leaving" not in evolution.rows())
    assert (await client.delete("/instance/delete/leaving", headers=own)).status_code == 404
    removed = evolution.journal.entries[-2]
    [asked, _] = evolution.journal.requests("delete")
    assert (removed.applied, removed.caused_by) == ("removed", asked.sequence)
    assert (removed.key_kind, removed.token_hash) == ("instance", asked.token_hash)


async def test_memory_forgets_before_the_database_does() -> None:
    async with running(pace=4.0) as (evolution, client):
        await create(client, "two-views")
        started = time.monotonic()
        await client.delete("/instance/delete/two-views")
        await eventually(lambda: "two-views" not in evolution.live(), every=0.001)
        assert "two-views" in evolution.rows()
        await eventually(lambda: "two-views" not in evolution.rows(), every=0.001)
        assert 4 * 0.075 < time.monotonic() - started < 4 * 0.220 + 1


async def test_a_delayed_second_removal_kills_the_instance_that_took_the_name_over(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "reused")
    evolution.arm("second_removal", seconds=0.3)
    await client.delete("/instance/delete/reused")
    await eventually(lambda: not evolution.rows())
    assert (await create(client, "reused")).status_code == 201
    await eventually(lambda: not evolution.rows())
    assert (await state(client, "reused")).status_code == 404


async def test_a_create_right_after_delete_is_403_and_then_clean_without_saved_instances() -> None:
    async with running(pace=1.0, save_instances=False) as (_, client):
        await create(client, "again")
        await client.delete("/instance/delete/again")
        seen: list[int] = []
        while not seen or seen[-1] != 201:
            seen.append((await create(client, "again")).status_code)
        assert set(seen) == {403, 201}
        assert (await state(client, "again")).status_code == 200


async def test_with_saved_instances_hammering_creates_end_in_a_201_that_is_gone_soon() -> None:
    async with running(pace=1.0) as (evolution, client):
        await create(client, "hammered")
        await client.delete("/instance/delete/hammered")
        seen: list[int] = []
        while not seen or seen[-1] != 201:
            seen.append((await create(client, "hammered")).status_code)
        assert 400 in seen
        await eventually(lambda: not evolution.rows())


async def test_2_3_7_refuses_some_deletes_after_logging_the_instance_out(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "stubborn", **BAILEYS, qrcode=True)
    evolution.arm("delete_400")
    first = await client.delete("/instance/delete/stubborn")
    assert first.status_code == 400
    assert first.json()["response"]["message"] == ["[object Object]"]
    assert (await state(client, "stubborn")).json()["instance"]["state"] == "close"
    assert "stubborn" in evolution.rows()
    assert (await client.delete("/instance/delete/stubborn")).status_code == 200


async def test_the_share_of_refused_deletes_is_that_of_the_real_server() -> None:
    async with running(pace=0.0, delete_refusal=None, seed=7) as (_, client):
        answers = []
        for index in range(40):
            await create(client, f"n{index}", **BAILEYS, qrcode=True)
            answers.append((await client.delete(f"/instance/delete/n{index}")).status_code)
        assert 8 <= answers.count(400) <= 28


async def test_with_whatsapp_out_of_reach_2_3_7_refuses_every_delete_of_a_paired_instance(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "paired", **BAILEYS, qrcode=True)
    evolution.pair("paired")
    evolution.whatsapp(reachable=False)
    for _ in range(3):
        assert (await client.delete("/instance/delete/paired")).status_code == 400
    assert (await client.delete("/instance/logout/paired")).status_code in (400, 500)
    evolution.whatsapp(reachable=True)
    await eventually(lambda: evolution.live()["paired"].state == "open")
    assert (await client.delete("/instance/delete/paired")).status_code == 200


# -- connecting and pairing


async def test_connect_shows_a_qr_and_pairing_opens_the_instance(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "phone", **BAILEYS, qrcode=False)
    shown = (await client.get("/instance/connect/phone")).json()
    assert shown["count"] == 1
    evolution.pair("phone", jid="5511912345678", profile_name="Ana")
    assert (await state(client, "phone")).json()["instance"]["state"] == "open"
    await eventually(lambda: evolution.rows()["phone"].state == "open")
    [element] = (await client.get("/instance/fetchInstances?instanceName=phone")).json()
    assert element["ownerJid"] == "5511912345678@s.whatsapp.net"
    assert element["profileName"] == "Ana"
    assert (await client.get("/instance/connect/phone")).json() == {
        "instance": {"instanceName": "phone", "state": "open"}
    }


async def test_logout_keeps_row_and_number_and_cannot_be_done_twice(
    client: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    await create(client, "out", **BAILEYS, qrcode=True)
    evolution.pair("out")
    reply = await client.delete("/instance/logout/out")
    assert reply.json()["response"]["message"] == "Instance logged out"
    again = await client.delete("/instance/logout/out")
    assert again.status_code == 400
    assert again.json()["response"]["message"] == ['The "out" instance is not connected']
    await eventually(lambda: evolution.rows()["out"].state == "close")
    [element] = (await client.get("/instance/fetchInstances")).json()
    assert element["ownerJid"] == "5511999990000@s.whatsapp.net"
    assert element["disconnectionReasonCode"] == 401


async def test_a_passive_instance_that_was_logged_out_stays_open_in_the_list(
    client: httpx.AsyncClient,
) -> None:
    await create(client, "passive")
    await client.delete("/instance/logout/passive")
    assert (await state(client, "passive")).json()["instance"]["state"] == "close"
    [element] = (await client.get("/instance/fetchInstances")).json()
    assert element["connectionStatus"] == "open"
    assert (await client.get("/instance/connect/passive")).json() == {}
    restarted = await client.post("/instance/restart/passive")
    assert (restarted.status_code, restarted.json()["error"]) == (200, True)


async def test_passing_codes_reconnect_in_silence_and_final_ones_do_not(
    evolution: SimulatedEvolution, client: httpx.AsyncClient
) -> None:
    await create(client, "flaky", **BAILEYS, qrcode=True)
    evolution.pair("flaky")
    evolution.logout("flaky", 408)
    stale = await client.get("/instance/connect/flaky")
    assert "base64" in stale.json() or stale.json()["instance"]["state"] == "open"
    await eventually(lambda: evolution.live()["flaky"].state == "open")
    evolution.logout("flaky", 403)
    assert evolution.live()["flaky"].state == "close"
    with pytest.raises(ValueError, match="code must be one of"):
        evolution.logout("flaky", 999)


async def test_at_the_qr_limit_memory_says_close_and_the_database_connecting() -> None:
    async with running(pace=0.0, qrcode_limit=2) as (evolution, client):
        await create(client, "tired", **BAILEYS, qrcode=True)
        await eventually(lambda: evolution.live()["tired"].state == "close")
        assert evolution.rows()["tired"].state == "connecting"
        assert (await client.get("/instance/connect/tired")).status_code == 200
        await eventually(lambda: evolution.live()["tired"].state == "connecting")


# -- webhooks


async def test_webhook_set_and_find_keep_evolutions_row(client: httpx.AsyncClient) -> None:
    await create(client, "hooked")
    assert (await client.get("/webhook/find/hooked")).json() is None
    wanted = {"enabled": True, "url": "http://127.0.0.1:9", "headers": {"x": "y"}, "events": []}
    reply = await client.post("/webhook/set/hooked", json={"webhook": wanted})
    assert reply.status_code == 201
    assert " ".join(reply.json()) == (
        "id url headers enabled events webhookByEvents webhookBase64 createdAt updatedAt instanceId"
    )
    assert len(reply.json()["events"]) == 31
    assert (await client.get("/webhook/find/hooked")).json() == reply.json()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"url": "http://x"}, 400, [['instance requires property "webhook"']]),
        ({"webhook": {"url": "http://x"}}, 400, [['webhook requires property "enabled"']]),
        (
            {"webhook": {"enabled": True, "url": "http://x"}},
            500,
            "Cannot read properties of undefined (reading 'length')",
        ),
    ],
)
async def test_webhook_set_refuses_as_the_real_one_does(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, message: object
) -> None:
    await create(client, "hooked")
    reply = await client.post("/webhook/set/hooked", json=body)
    assert (reply.status_code, reply.json()["response"]["message"]) == (status, message)


async def test_webhook_set_knows_its_events(client: httpx.AsyncClient) -> None:
    await create(client, "hooked")
    wanted = {"enabled": True, "url": "http://x", "events": ["NO_SUCH_EVENT"]}
    reply = await client.post("/webhook/set/hooked", json={"webhook": wanted})
    assert reply.status_code == 400
    [[text]] = reply.json()["response"]["message"]
    assert text.startswith("webhook.events[0] is not one of enum values: ")


async def test_the_life_of_an_instance_is_told_to_its_webhook(
    client: httpx.AsyncClient, evolution: SimulatedEvolution, receiver: Receiver
) -> None:
    hook = {"url": receiver.url, "events": [], "headers": {"x-secret": "s"}}
    made = await create(client, "told", **BAILEYS, qrcode=True, webhook=hook)
    assert made.json()["webhook"] == {
        "webhookUrl": receiver.url,
        "webhookHeaders": {"x-secret": "s"},
    }
    evolution.pair("told", profile_name="Ana")
    await eventually(
        lambda: receiver.data("connection.update")[-1:] and "wuid" in str(receiver.bodies)
    )
    [(path, headers)] = receiver.requests[:1]
    assert (path, headers["x-secret"]) == ("/", "s")
    assert headers["User-Agent"].startswith("axios/")
    assert headers["Content-Type"] == "application/json"
    first, last = receiver.bodies[0], receiver.bodies[-1]
    assert " ".join(first) == "event instance data destination date_time server_url apikey"
    assert "sender" in last
    assert first["apikey"] is None
    assert first["date_time"].endswith("Z")
    assert set(receiver.events()) == {"instance.create", "connection.update", "qrcode.updated"}
    [shown] = receiver.data("qrcode.updated")
    assert list(shown["qrcode"]) == ["instance", "pairingCode", "code", "base64"]
    opened = next(d for d in receiver.data("connection.update") if d["state"] == "open")
    assert opened == {
        "instance": "told",
        "state": "open",
        "statusReason": 200,
        "wuid": "5511999990000@s.whatsapp.net",
        "profileName": "Ana",
        "profilePictureUrl": "https://pps.whatsapp.net/v/5511999990000.jpg",
    }


@pytest.mark.parametrize(
    ("version", "order"),
    [
        (
            "2.3.6",
            "instance.delete remove.instance status.instance logout.instance connection.update",
        ),
        (
            "2.3.7",
            "status.instance logout.instance connection.update instance.delete remove.instance",
        ),
    ],
)
async def test_the_events_of_a_delete_come_in_the_order_of_the_version(
    receiver: Receiver, version: str, order: str
) -> None:
    async with running(version=version) as (evolution, client):
        hook = {"url": receiver.url, "events": []}
        await create(client, "going", **BAILEYS, qrcode=True, webhook=hook)
        evolution.pair("going")
        await eventually(lambda: "wuid" in str(receiver.bodies))
        receiver.bodies.clear()
        await client.delete("/instance/delete/going")
        await eventually(lambda: len(receiver.bodies) == 5)
        assert sorted(receiver.events()) == sorted(order.split())
        # each event is on its own connection, so only the first is sure to be first
        assert order.split().index(receiver.events()[0]) < 3
        assert receiver.data("remove.instance") == [None]


async def test_by_events_puts_the_event_into_the_path_and_jwt_key_signs(
    client: httpx.AsyncClient, receiver: Receiver
) -> None:
    hook = {
        "url": receiver.url,
        "events": ["INSTANCE_CREATE"],
        "byEvents": True,
        "headers": {"jwt_key": "k"},
    }
    await create(client, "signed", webhook=hook)
    await eventually(lambda: receiver.requests)
    [(path, headers)] = receiver.requests
    assert path == "/instance-create"
    assert headers["Authorization"].startswith("Bearer ")
    assert headers["Authorization"].count(".") == 2
    assert "jwt_key" not in headers


async def test_a_failing_target_is_tried_ten_times_and_a_404_once(
    receiver: Receiver,
) -> None:
    async with running(pace=0.0) as (_, client):
        hook = {"url": receiver.url, "events": ["INSTANCE_CREATE"]}
        receiver.status = 503
        await create(client, "ten", webhook=hook)
        await eventually(lambda: len(receiver.bodies) == 10)
        receiver.bodies.clear()
        receiver.status = 404
        await create(client, "one", webhook=hook)
        await eventually(lambda: receiver.bodies)
        await create(client, "another", webhook=hook)
        await eventually(lambda: len(receiver.bodies) == 2)


async def test_a_removal_waits_for_a_remove_webhook_whose_target_fails(
    client: httpx.AsyncClient, evolution: SimulatedEvolution, receiver: Receiver
) -> None:
    hook = {"url": receiver.url, "events": ["REMOVE_INSTANCE"]}
    receiver.status = 500
    await create(client, "held-up", webhook=hook)
    await client.delete("/instance/delete/held-up")
    await eventually(lambda: len(receiver.bodies) >= 3)
    assert "held-up" in evolution.live()
    receiver.status = 200
    await eventually(lambda: "held-up" not in evolution.rows())


async def test_the_global_webhook_hears_all_but_the_end_of_an_instance(receiver: Receiver) -> None:
    async with running(global_webhook=receiver.url) as (evolution, client):
        await create(client, "global", **BAILEYS, qrcode=True)
        evolution.pair("global")
        await client.delete("/instance/delete/global")
        await eventually(lambda: not evolution.rows())
        await eventually(lambda: "instance.delete" in receiver.events())
        assert not {"remove.instance", "logout.instance", "status.instance"} & set(
            receiver.events()
        )


# -- the journal and the command


async def test_the_journal_tells_what_was_asked_and_what_came_of_it_without_a_secret(
    tmp_path: Path,
) -> None:
    file = tmp_path / "journal.jsonl"
    async with running(journal=file) as (evolution, client):
        made = (await create(client, "noted", token="canary-token")).json()
        own = {"apikey": "canary-token"}
        await client.delete("/instance/delete/noted", headers=own)
        await eventually(lambda: not evolution.rows())
        await state(client, "noted", "canary-wrong")
    text = file.read_text()
    for secret in (KEY, "canary-token", "canary-wrong"):
        assert secret not in text
    entries = [json.loads(line) for line in text.splitlines()]
    assert [(e["operation"], e["applied"], e["key_kind"], e["status"]) for e in entries] == [
        ("create", "created", "global", 201),
        ("delete", "logged_out", "instance", 200),
        (None, "removed", "instance", None),
        ("connectionState", None, "wrong", 404),
    ]
    assert {e["token_hash"] for e in entries[:3]} == {entries[0]["token_hash"]}
    assert {e["instance_id"] for e in entries[:3]} == {made["instance"]["instanceId"]}
    assert entries[0]["received_at"] <= entries[0]["answered_at"]


async def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from evosaga.orchestrator.local.evolution import main_simulate\n"
        f"main_simulate(0, Path({str(tmp_path / 'j.jsonl')!r}), as_json=True, pace=0.0)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told = json.loads(await process.stdout.readline())
    async with httpx.AsyncClient(
        base_url=told["url"], headers={"apikey": told["api_key"]}, trust_env=False
    ) as client:
        assert (await create(client, "alone")).status_code == 201
        os.kill(process.pid, signal.SIGTERM)
        assert await process.wait() == 0
    assert (tmp_path / "j.jsonl").read_text().count("\n") == 1


def test_importing_the_names_does_not_import_aiohttp() -> None:
    program = (
        "import sys; "
        "from evosaga.orchestrator.local.evolution import main_simulate, MODES, Journal; "
        "sys.exit('aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
