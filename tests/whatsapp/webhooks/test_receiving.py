"""Deliveries at the door: who may, what is kept of them, and what is answered when."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import API_KEY, SECRET
from tests.support.driving import create, delete, entries, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House, webhook_token

OPEN = {"state": "open", "statusReason": 200}
CLOSE = {"state": "close", "statusReason": 401}
GLOBAL = KeyRing([SECRET]).global_webhook_tokens()[0]


@pytest.fixture
def house(shared_house: House) -> House:
    return shared_house


async def everything_in(redis: Redis) -> str:
    """All that Redis holds, as one text."""
    found = []
    async for key in redis.scan_iter():
        kind = await redis.type(key)
        value: Any = await redis.xrange(key) if kind == b"stream" else None
        found.append((key, value or await redis.get(key) if kind == b"string" else value))
    return repr(found)


class TestW1NobodyElseMayDeliver:
    @pytest.mark.fault("w1")
    async def test_a_wrong_token_is_401_and_nothing_is_kept(
        self, house: House, subtests: pytest.Subtests
    ) -> None:
        name = await house.integration(channel="EVOLUTION")
        path, told = f"/webhooks/evolution/{name}", {"event": "connection.update", "instance": name}
        await house.deliver(name, data=OPEN)
        await house.all_applied()
        before = await house.stored(name)
        for token in ("", "wrong", "é", "0" * 64):
            with subtests.test(token):
                headers = {"X-Webhook-Token": token} if token else {}
                refused = await house.post(path, told | {"data": CLOSE}, headers)
                assert refused.status_code == 401
                assert refused.headers["content-type"] == "application/problem+json"
                assert await house.stored(name) == before

    @pytest.mark.fault("w1")
    async def test_an_unknown_instance_is_answered_like_a_wrong_token(self, house: House) -> None:
        name = await house.integration()
        wrong = await house.deliver(name, data=OPEN, token="wrong")
        for other in (f"wa-{uuid.uuid4()}", "nobody", "a" * 200, "Ünknown", "%00x"):
            unknown = await house.deliver(other, data=OPEN, token="wrong")
            if unknown.status_code != 400:  # a NUL does not get past the door
                assert (unknown.status_code, unknown.json()) == (401, wrong.json()), other

    @pytest.mark.fault("w1")
    async def test_another_integrations_token_opens_nothing(self, house: House) -> None:
        one, other = await house.integration(), await house.integration()
        refused = await house.deliver(one, data=OPEN, token=webhook_token(other))
        assert refused.status_code == 401


@pytest.mark.fault("w2")
async def test_a_body_about_another_instance_is_403_and_an_alert(
    house: House, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = [await house.integration(channel="EVOLUTION") for _ in range(2)]
    before = await house.stored(one), await house.stored(other)
    body = {"event": "connection.update", "instance": other, "data": OPEN}
    headers = {"X-Webhook-Token": webhook_token(one)}
    refused = await house.post(f"/webhooks/evolution/{one}", body, headers)
    assert refused.status_code == 403
    inner = await house.deliver(one, data=OPEN | {"instance": other})
    assert inner.status_code == 403
    assert (await house.stored(one), await house.stored(other)) == before
    told = caplog.text + capsys.readouterr().out
    assert "webhook names another instance" in told


@pytest.mark.fault("w3")
async def test_a_repeated_webhook_is_stored_once(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    before = len(await house.stored(name))
    answers = [await house.deliver(name, data=CLOSE) for _ in range(5)]
    assert [it.status_code for it in answers] == [200] * 5
    assert [it.json()["status"] for it in answers] == ["stored"] + ["repeated"] * 4
    assert len(await house.stored(name)) == before + 1


class TestW5EarlyDeliveries:
    """Evolution delivers while our create still waits for its answer."""

    @pytest.mark.fault("w5")
    @pytest.mark.parametrize("instance_name", [None, "a-name-of-ones-own"])
    async def test_an_event_during_the_create_is_taken_and_applied_later(
        self, house: House, instance_name: str | None
    ) -> None:
        held = house.evolution.arm("slow_after", operation="create", seconds=1.5)
        command = create(channel="WHATSAPP-BAILEYS")
        if instance_name:
            command["data"]["instance_name"] = instance_name
        name = instance_name or f"wa-{command['id']}"
        ring = KeyRing([SECRET])
        token = ring.webhook_token(uuid.UUID(command["id"]), ring.current)
        await publish(house.redis, command)
        await eventually(lambda: name in house.evolution.live(), 10)
        assert await house.row(name) == {}
        early = await house.deliver(name, data={"state": "connecting"}, token=token)
        assert (early.status_code, early.json()) == (200, {"status": "stored"})
        assert (await house.deliver(name, data=OPEN, token="wrong")).status_code == 401
        await eventually(lambda: house.stored(name))
        assert [it["applied_at"] for it in await house.stored(name)] == [None]
        assert (await outcome(house.pool, command["id"], 30)).status == "completed"
        assert held.fired == 1
        await house.all_applied()

    @pytest.mark.fault("w5")
    async def test_what_was_parked_for_a_create_that_is_undone_is_let_go(
        self, house: House
    ) -> None:
        house.evolution.arm("slow_after", operation="create", seconds=1)
        command = create(channel="WHATSAPP-BAILEYS")
        name = f"wa-{command['id']}"
        await house.redis.set(f"evosaga:removed:{name}", command["id"])  # its cache step refuses
        await publish(house.redis, command)
        await eventually(lambda: name in house.evolution.live(), 10)
        assert (await house.deliver(name, data=OPEN)).status_code == 200
        assert (await outcome(house.pool, command["id"], 30)).status == "compensated"
        await house.all_applied()
        assert await house.pool.fetchval("SELECT count(*) FROM evosaga.notices") == 0


class TestW10OnlyWhatCanBeRead:
    @pytest.mark.fault("w10")
    async def test_a_body_that_is_too_large_is_refused_before_it_is_read(
        self, house: House
    ) -> None:
        name = await house.integration()
        path, headers = f"/webhooks/evolution/{name}", {"X-Webhook-Token": webhook_token(name)}
        ends = urlsplit(house.url)
        reader, writer = await asyncio.open_connection(ends.hostname, ends.port)
        told = f"X-Webhook-Token: {webhook_token(name)}\r\nContent-Length: {136 * 2**20 + 1}"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{told}\r\n\r\n{{".encode())
        answer = await asyncio.wait_for(reader.readline(), 20)
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.close()

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(136):
                yield b"x" * 1024 * 1024

        refused = await house.http.post(path, content=endless(), headers=headers)
        assert refused.status_code == 413

    @pytest.mark.fault("w10")
    async def test_a_compressed_body_is_refused(self, house: House) -> None:
        name = await house.integration()
        headers = {"X-Webhook-Token": webhook_token(name), "Content-Encoding": "gzip"}
        bomb = gzip.compress(b" " * 10_000_000)
        refused = await house.post(f"/webhooks/evolution/{name}", bomb, headers)
        assert refused.status_code == 415

    @pytest.mark.fault("w10")
    async def test_what_can_never_be_understood_is_a_4xx_and_comes_no_more(
        self, house: House, subtests: pytest.Subtests
    ) -> None:
        name = await house.integration()
        headers = {"X-Webhook-Token": webhook_token(name)}
        too_deep = b'{"event":"x","instance":"y","data":' + b"[" * 40 + b"]" * 40 + b"}"
        for raw, status in (
            (b"", 400),
            (b"no json", 400),
            (b"[" * 100_000, 400),
            (too_deep, 400),
            (b"[]", 422),
            (b"{}", 422),
        ):
            with subtests.test(raw[:40].decode()):
                refused = await house.post(f"/webhooks/evolution/{name}", raw, headers)
                assert refused.status_code == status


@pytest.mark.fault("w11")
async def test_no_secret_of_a_webhook_is_kept_anywhere(
    house: House, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = await house.integration(channel="EVOLUTION")  # which shows no QR codes of its own
    qr = {
        "code": "2@canary-code",
        "base64": "data:image/png;base64,canary",
        "pairingCode": "CANARY",
    }
    await house.deliver(name, data=CLOSE | {"apikey": "canary-key"}, apikey="canary-key")
    await house.becomes(name, "connected")
    await house.all_applied()
    await house.deliver(name, "qrcode.updated", {"qrcode": qr}, apikey="canary-key")
    message = {"apikey": "canary-key", "text": f"the key is {API_KEY}", "api_key": "canary-key"}
    assert (await house.deliver(name, "messages.upsert", message, apikey="canary-key")).is_success
    await house.all_applied()
    rows = await house.pool.fetch(
        "SELECT to_jsonb(w)::text FROM evosaga.webhooks w UNION ALL "
        "SELECT to_jsonb(n)::text FROM evosaga.notices n"
    )
    told = repr([tuple(row) for row in rows])
    kept = await everything_in(house.redis)
    shown = json.loads(await house.redis.get(f"evosaga:qr:{name}") or b"{}")
    assert shown["code"] == "2@canary-code", "it is for Redis alone, and for a minute"
    assert 0 < await house.redis.ttl(f"evosaga:qr:{name}") <= 60
    elsewhere = kept.replace(repr(await house.redis.get(f"evosaga:qr:{name}")), "")
    logged = caplog.text + "".join(capsys.readouterr())
    for secret in ("canary-key", "canary-code", "canary", "CANARY", API_KEY, webhook_token(name)):
        assert secret not in told
        assert secret not in elsewhere
        assert secret not in logged


@pytest.mark.fault("w12")
async def test_after_the_delete_an_event_is_answered_and_changes_nothing(house: House) -> None:
    name = await house.integration()
    told = delete(name)
    await publish(house.redis, told)
    assert (await outcome(house.pool, told["id"], 30)).status == "completed"
    await house.all_applied()
    notices = await house.pool.fetchval("SELECT count(*) FROM evosaga.notices")
    qr = {"code": "2@late", "base64": "data:image/png;base64,xx", "pairingCode": None}
    assert (await house.deliver(name, data=OPEN)).status_code == 200
    assert (await house.deliver(name, "qrcode.updated", {"qrcode": qr})).status_code == 200
    message = await house.deliver(name, "messages.upsert", {"text": "late"})
    assert (message.status_code, message.json()) == (200, {"status": "ignored"})
    await house.all_applied()
    assert await house.row(name) == {}
    assert await house.redis.exists(f"evosaga:qr:{name}", f"whatsapp:instance:{name}") == 0
    assert await house.pool.fetchval("SELECT count(*) FROM evosaga.notices") == notices
    assert await entries(house.redis, "wa:events") == []


class TestW14Rotation:
    @pytest.mark.fault("w14")
    async def test_old_and_new_tokens_are_valid_while_both_keys_are(self, house: House) -> None:
        name = await house.integration()
        new = "a-new-secret-key-of-thirty-two-bytes-or-more"
        ring = KeyRing([new, SECRET])
        house.parts = replace(house.parts, services=replace(house.parts.services, keys=ring))
        old_token = webhook_token(name)
        saga_id = uuid.UUID(name.removeprefix("wa-"))
        tokens = {old_token, ring.webhook_token(saga_id, ring.current)}
        assert len(tokens) == 2
        from evosaga.orchestrator.whatsapp.webhooks.authentication import (
            Presented,
            WebhookAuthenticator,
        )

        credentials = WebhookAuthenticator(house.pool, ring)
        for token in tokens:
            assert await credentials.recognise(name, Presented(token)) == saga_id
        only_new = WebhookAuthenticator(house.pool, KeyRing([new]))
        assert await only_new.recognise(name, Presented(old_token)) == saga_id, (
            "the row still has it"
        )
        await house.pool.execute("UPDATE healthcare.integrations SET webhook_token = 'changed'")
        only_new = WebhookAuthenticator(house.pool, KeyRing([new]))
        assert await only_new.recognise(name, Presented(old_token)) is None

    @pytest.mark.fault("w14")
    async def test_a_token_that_was_changed_in_the_row_opens_as_well(self, house: House) -> None:
        name = await house.integration()
        refused = await house.deliver(name, data=OPEN, token="rotated-by-hand")
        assert refused.status_code == 401
        await house.pool.execute(
            "UPDATE healthcare.integrations SET webhook_token = 'rotated-by-hand'"
        )

        async def taken() -> bool:
            answer = await house.deliver(name, data=OPEN, token="rotated-by-hand")
            return answer.status_code == 200

        await eventually(taken)

    async def test_a_row_of_older_code_has_a_token_of_its_own(self, house: House) -> None:
        organization = uuid.uuid4()
        token = await saved_by_hand(house, organization)
        assert (await house.deliver("clinic-of-old", data=OPEN, token=token)).status_code == 200
        assert (await house.deliver("clinic-of-old", data=CLOSE, token="x")).status_code == 401


async def saved_by_hand(house: House, organization: uuid.UUID) -> str:
    """The token that the RPC tells whoever makes a row, and nobody after him."""
    saved = await house.pool.fetchval(
        "SELECT healthcare.save_evolution_integration($1, 'clinic-of-old')", organization
    )
    return str(json.loads(saved)["webhook_token"])


def signed(key: str, shift: float) -> str:
    now = int(time.time() + shift)
    claims = {"iat": now, "exp": now + 600, "app": "evolution", "action": "webhook"}
    parts = [json.dumps(it).encode() for it in ({"alg": "HS256", "typ": "JWT"}, claims)]
    head = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.new(key.encode(), head, hashlib.sha256).digest()
    return (head + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.fault("k4")
async def test_a_signed_delivery_is_taken_though_the_clocks_differ_a_little(
    house: House,
) -> None:
    name = await house.integration()
    path, key = f"/webhooks/evolution/{name}", webhook_token(name)
    for shift, status in [(0, 200), (40, 200), (-640, 200), (600, 401), (-1200, 401)]:
        body = {"event": "connection.update", "instance": name, "data": OPEN, "date_time": shift}
        headers = {"Authorization": f"Bearer {signed(key, shift)}"}
        assert (await house.post(path, body, headers)).status_code == status, shift


class TestTheGlobalWebhook:
    @pytest.mark.fault("w1")
    async def test_needs_its_token_in_the_address(self, house: House) -> None:
        name = await house.integration()
        body = {"event": "connection.update", "instance": name, "data": OPEN}
        for query in ("", "?token=", "?token=wrong", f"?token={GLOBAL[:-1]}"):
            refused = await house.post(f"/webhooks/evolution{query}", body, {})
            assert refused.status_code == 401, query

    async def test_tells_of_instances_whose_own_webhook_leads_elsewhere(
        self, house: House, subtests: pytest.Subtests
    ) -> None:
        name = await house.integration(channel="EVOLUTION")
        for tail in ("", "/connection-update"):
            with subtests.test(tail):
                body: dict[str, Any] = {"event": "connection.update", "instance": name}
                body |= {"data": OPEN, "date_time": tail}
                path = f"/webhooks/evolution?token={GLOBAL}{tail}"
                assert (await house.post(path, body, {})).json() == {"status": "stored"}
                assert (await house.stored(name))[-1]["integration_id"] is None

    @pytest.mark.fault("w3")
    async def test_what_comes_both_ways_is_applied_once(self, house: House) -> None:
        name = await house.integration()
        await house.deliver(name, data=CLOSE, at="2026-02-02T12:00:00.000Z")
        body = {
            "event": "connection.update",
            "instance": name,
            "data": {"instance": name, **CLOSE},
            "date_time": "2026-02-02T12:00:00.000Z",
            "destination": "the global one",
        }
        again = await house.post(f"/webhooks/evolution?token={GLOBAL}", body, {})
        assert again.json() == {"status": "repeated"}

    async def test_other_peoples_instances_are_ignored(self, house: House) -> None:
        for stranger in ("somebody-elses", "Name With Spaces", "x/../y"):
            for event in ("connection.update", "messages.upsert", "instance.create"):
                body: dict[str, Any] = {"event": event, "instance": stranger, "data": {}}
                answer = await house.post(f"/webhooks/evolution?token={GLOBAL}", body, {})
                said = (answer.status_code, answer.json())
                assert said == (200, {"status": "ignored"}), (stranger, event)
            assert await house.stored(stranger) == []

    async def test_brings_no_messages_of_an_instance_that_delivers_them_elsewhere(
        self, house: House
    ) -> None:
        name = await house.integration()
        body: dict[str, Any] = {"event": "messages.upsert", "instance": name, "data": {"id": 1}}
        path = f"/webhooks/evolution?token={GLOBAL}"
        assert (await house.post(path, body, {})).json() == {"status": "queued"}
        await house.pool.execute(
            "UPDATE healthcare.integrations SET config = config || "
            '\'{"webhook_url": "https://crm.example/hook"}\''
        )
        other = await house.integration(name="Clínica Lua")
        await house.pool.execute(
            "UPDATE healthcare.integrations SET config = config || "
            '\'{"webhook_url": "https://crm.example/hook"}\''
        )
        body |= {"instance": other}
        assert (await house.post(path, body, {})).json() == {"status": "ignored"}
        assert len(await entries(house.redis, "wa:events")) == 1


async def test_the_simulated_global_webhook_is_understood(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone is paired on an instance that delivers to somebody else."""
    name = await house.integration()
    await house.pool.execute("UPDATE healthcare.integrations SET config = config - 'webhook_url'")
    services = house.evolution._world
    services.rows[name].webhook = None
    path = f"{house.url}/webhooks/evolution?token={GLOBAL}"
    monkeypatch.setattr(services, "settings", replace(services.settings, global_webhook=path))
    house.evolution.pair(name, "5511977776666")
    row = await house.becomes(name, "connected")
    assert row["whatsapp_number"] == "5511977776666"
