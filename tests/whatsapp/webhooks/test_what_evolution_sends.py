"""Whatever Evolution delivers is taken: by any path, of any size, and handed on as valid JSON."""

import asyncio
import hashlib
import json
import re
import resource
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.whatsapp.webhooks import body_reader
from evosaga.orchestrator.whatsapp.webhooks.body_reader import (
    LONGEST_TEXT,
    WHOLE,
    BodyReader,
    Shortened,
    TooManyBodies,
)
from evosaga.orchestrator.whatsapp.webhooks.payloads import BadWebhook, read
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.api.conftest import client_with
from tests.conftest import SECRET
from tests.support.driving import entries
from tests.whatsapp.webhooks.conftest import House, webhook_token

GLOBAL = KeyRing([SECRET]).global_webhook_tokens()[0]
CLOSE = {"state": "close", "statusReason": 401}


@pytest.fixture(scope="module")
def own_settings() -> dict[str, Any]:
    """Keys that look like parts of JSON."""
    servers = {
        "digits": {"url": "http://127.0.0.1:1", "api_key": "12345678"},
        "quotes": {"url": "http://127.0.0.1:2", "api_key": '"a":{"b\\c'},
    }
    return {"evolution_servers": json.dumps(servers)}


@pytest.fixture
def house(shared_house: House) -> House:
    return shared_house


def told(name: str, event: str = "connection.update", data: Any = None) -> dict[str, Any]:
    at = {"date_time": "2026-11-30T03:00:00.000Z"}
    return {"event": event, "instance": name, "data": data or {"instance": name, **CLOSE}} | at


async def whatsapp_events(house: House) -> list[dict[str, Any]]:
    """Read as strictly as JSON is."""

    def no(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    texts = [fields[b"data"].decode() for _, fields in await entries(house.redis, "wa:events")]
    return [json.loads(text, parse_constant=no) for text in texts]


# --- by any path ------------------------------------------------------------------------------


async def test_with_by_events_a_webhook_of_ones_own_arrives_like_any_other(
    house: House, subtests: pytest.Subtests
) -> None:
    for tail in ("/connection-update", "/", "//", "//connection-update", "/messages-upsert/"):
        with subtests.test(tail):
            name = await house.integration(channel="EVOLUTION")
            path = f"/webhooks/evolution/{name}{tail}"
            headers, wrong = {"X-Webhook-Token": webhook_token(name)}, {"X-Webhook-Token": "wrong"}
            answer = await house.post(path, told(name), headers)
            assert (answer.status_code, answer.json()) == (200, {"status": "stored"})
            message = await house.post(path, told(name, "messages.upsert", {"id": tail}), headers)
            assert (message.status_code, message.json()) == (200, {"status": "queued"})
            assert (await house.post(path, told(name), wrong)).status_code == 401


async def test_the_global_webhook_arrives_by_every_path_that_evolution_makes_of_its_address(
    house: House, subtests: pytest.Subtests
) -> None:
    for path in (
        f"?token={GLOBAL}",
        f"?token={GLOBAL}/connection-update",
        f"/?token={GLOBAL}",
        f"/?token={GLOBAL}/connection-update",
        f"/connection-update?token={GLOBAL}",
        f"/connection-update/?token={GLOBAL}",
    ):
        with subtests.test(path):
            name = await house.integration(channel="EVOLUTION")
            answer = await house.post(f"/webhooks/evolution{path}", told(name), {})
            assert (answer.status_code, answer.json()) == (200, {"status": "stored"})
            wrong = path.replace(GLOBAL, "x" * len(GLOBAL))
            refused = await house.post(f"/webhooks/evolution{wrong}", told(name), {})
            assert refused.status_code == 401


OLDER_NAMES = (
    "Clinica_Sol",
    "Clínica Sol",
    "a+b",
    "sol.com.br",
    "50%off",
    "a/b",
    "a?b#c",
    "qrcode-updated",
)


async def test_an_older_name_with_any_characters_delivers_percent_encoded(
    house: House, subtests: pytest.Subtests
) -> None:
    for name in OLDER_NAMES:
        for tail in ("", "/messages-upsert"):
            with subtests.test(name + tail):
                await delivers_percent_encoded(house, name, tail)


async def delivers_percent_encoded(house: House, name: str, tail: str) -> None:
    name += " and more" if tail else ""
    await house.redis.delete("wa:events")
    await house.pool.execute(
        "INSERT INTO healthcare.integrations (organization_id, type, provider, status, enabled, "
        "config, webhook_token) VALUES ($1, 'whatsapp', 'evolution', 'connected', true, "
        "jsonb_build_object('instance_name', $2::text), 'its-own-token')",
        uuid.uuid4(),
        name,
    )
    path = f"/webhooks/evolution/{quote(name, safe='')}{tail}"
    headers = {"X-Webhook-Token": "its-own-token"}
    answer = await house.post(path, told(name, "messages.upsert", {"id": 1}), headers)
    assert (answer.status_code, answer.json()) == (200, {"status": "queued"})
    (event,) = await whatsapp_events(house)
    assert event["data"]["instance_name"] == event["subject"] == name
    assert re.fullmatch(r"[!-~]+", event["source"])
    assert (await house.post(path, told(name), headers)).json() == {"status": "stored"}


async def test_what_can_be_no_name_is_a_stranger(house: House) -> None:
    for name in ("%00", "%0a", "%ff", "a" * 101, "%e2%80%ae"):
        headers = {"X-Webhook-Token": "x"}
        answer = await house.post(f"/webhooks/evolution/{name}", told("x"), headers)
        assert answer.status_code in (400, 401), name


async def test_the_global_webhook_brings_messages_of_those_that_deliver_to_us(
    house: House, subtests: pytest.Subtests
) -> None:
    for url, elsewhere in (
        ("https://us.example/webhooks/evolution/{}", False),
        ("https://us.example/webhooks/evolution/{}/", False),
        ("https://us.example/in/webhooks/evolution/{}", False),
        ("https://crm.example/hook", True),
        ("http://[bad", True),
        ("", True),
    ):
        with subtests.test(url):
            name = await house.integration(channel="EVOLUTION")
            await house.pool.execute(
                "UPDATE healthcare.integrations SET config = config || "
                "jsonb_build_object('webhook_url', $1::text) WHERE config ->> 'instance_name' = $2",
                url.format(name),
                name,
            )
            path = f"/webhooks/evolution?token={GLOBAL}"
            answer = await house.post(path, told(name, "messages.upsert", {"id": 1}), {})
            assert answer.json() == {"status": "ignored" if elsewhere else "queued"}


# --- of any size ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_200_000, pytest.param(100_000_000, marks=pytest.mark.long)])
async def test_a_message_with_media_in_it_is_handed_on_without_them(
    house: House, size: int
) -> None:
    name = await house.integration(channel="EVOLUTION")
    media = "A" * size
    message = {"key": {"id": "BIG"}, "message": {"base64": media, "caption": 'o "laudo" 👋'}}
    headers = {"X-Webhook-Token": webhook_token(name)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raw = json.dumps(told(name, "messages.upsert", message)).encode()
    for status in ("queued", "repeated"):
        answer = await house.post(f"/webhooks/evolution/{name}", raw, headers)
        assert (answer.status_code, answer.json()) == (200, {"status": status})
    (event,) = await whatsapp_events(house)
    assert event["omitted"] == 1
    kept = event["data"]["data"]["message"]
    digest = hashlib.sha256(media.encode()).hexdigest()
    assert kept["base64"] == f"[omitted: {size} bytes, sha256:{digest}]"
    assert kept["caption"] == 'o "laudo" 👋'
    assert event["data"]["data"]["key"] == {"id": "BIG"}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 4 * size + 100_000_000, "the sender is in this process, and has it whole"


async def test_up_to_a_mebibyte_a_message_is_handed_on_whole(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    message = {"message": {"base64": "A" * (WHOLE - 1000)}}
    answer = await house.deliver(name, "messages.upsert", message)
    assert answer.json() == {"status": "queued"}
    (event,) = await whatsapp_events(house)
    assert event["data"]["data"]["message"] == message["message"]
    assert "omitted" not in event


async def test_a_long_history_of_short_messages_is_handed_on_whole(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    history = [{"key": {"id": str(n)}, "text": "bom dia" * 20} for n in range(20_000)]
    answer = await house.deliver(name, "messages.set", history)
    assert answer.json() == {"status": "queued"}
    (event,) = await whatsapp_events(house)
    assert event["data"]["data"] == history


async def metric(house: House, became: str) -> float:
    async with client_with(house.url, "k" * 40) as client:
        text = (await client.get("/metrics")).text
    found = re.search(rf'^evosaga_webhooks_total{{became="{became}"}} (.+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_what_is_too_large_even_so_is_told_with_its_instance_event_and_size(
    house: House, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = await house.integration(channel="EVOLUTION")
    numbers = told(name, "messages.set", [list(range(10))] * 500_000)
    raw = json.dumps(numbers).encode()
    path, headers = f"/webhooks/evolution/{name}", {"X-Webhook-Token": webhook_token(name)}
    for _ in range(3):
        answer = await house.post(path, raw, headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "oversized")
    said = caplog.text + "".join(capsys.readouterr())
    (line,) = [line for line in said.splitlines() if "webhook refused" in line]
    for part in (name, "messages.set", "oversized", "bytes"):
        assert part in line
    assert await metric(house, "oversized") == 3


async def test_the_operator_says_how_large_a_webhook_may_be(short_waits: Settings) -> None:
    small = BodyReader(1_100_000)

    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b'{"event":"messages.upsert","data":"'
        for _ in range(size // 50_000):
            yield b"A" * 50_000
        yield b'"}'

    assert (await small.read(chunks(1_050_000), None)).omitted == 1
    for announced in (None, 2_000_000):
        with pytest.raises(body_reader.TooLarge) as much:
            await small.read(chunks(2_000_000), announced)
        assert much.value.event == "messages.upsert"
        assert much.value.size > 1_100_000
    given = {"webhook_max_bytes": 1}
    with pytest.raises(ValueError, match="webhook_max_bytes"):
        Settings.model_validate(short_waits.model_dump() | given)


async def test_nothing_of_a_strangers_body_is_read(house: House) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 65536
            yield b"x" * 65536

    name = await house.integration(channel="EVOLUTION")
    headers = {"X-Webhook-Token": "wrong", "Connection": "close"}
    try:
        answer = await house.http.post(
            f"/webhooks/evolution/{name}", content=endless(), headers=headers
        )
        assert answer.status_code == 401
    except httpx.TransportError:
        pass  # it was told to go before it had said all
    assert read < 50_000_000


async def test_so_many_large_bodies_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_reader, "_PATIENCE", 0.1)
    reading, go = BodyReader(10**9), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'"' + b"A" * (WHOLE + 1)
        await go.wait()
        yield b'"'

    under_way = [asyncio.create_task(reading.read(slow(), None)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyBodies):
        await reading.read(slow(), None)
    go.set()
    assert all(body.omitted for body in await asyncio.gather(*under_way))
    assert (await reading.read(slow(), None)).omitted == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.builds(
        lambda text, n: text * n,
        st.sampled_from(["A", "\\", '"', "é", "\n", "👋"]),
        st.integers(LONGEST_TEXT // 4, LONGEST_TEXT + 10),
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)


shortened = given(
    json_values, st.booleans(), st.lists(st.integers(1, 40_000), min_size=1, max_size=5)
)


@hypothesis.settings(deadline=None, max_examples=15)  # a neighbour's load is no fault
@shortened
def test_json_without_its_long_texts_is_the_same_json_however_it_comes_in(
    value: Any, ascii_: bool, cuts: list[int]
) -> None:
    is_the_same(value, ascii_, cuts)


@pytest.mark.long
@hypothesis.settings(deadline=None, max_examples=200)
@shortened
def test_json_without_its_long_texts_is_the_same_json_time_and_again(
    value: Any, ascii_: bool, cuts: list[int]
) -> None:
    is_the_same(value, ascii_, cuts)


def is_the_same(value: Any, ascii_: bool, cuts: list[int]) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_).encode()
    whole = Shortened()
    whole.feed(raw)
    pieces, at, n = Shortened(), 0, 0
    while at < len(raw):
        pieces.feed(raw[at : at + cuts[n % len(cuts)]])
        at, n = at + cuts[n % len(cuts)], n + 1
    assert pieces.out == whole.out

    def same(before: Any, after: Any) -> bool:
        if isinstance(before, dict):
            return list(before) == list(after) and all(same(before[k], after[k]) for k in before)
        if isinstance(before, list):
            return len(before) == len(after) and all(map(same, before, after))
        long = isinstance(before, str) and len(json.dumps(before, ensure_ascii=ascii_).encode()) > (
            LONGEST_TEXT + 2
        )
        return str(after).startswith("[omitted: ") if long else bool(before == after)

    assert same(value, json.loads(whole.out))


# --- as valid JSON ----------------------------------------------------------------------------


class TestWhatIsHandedOnIsJson:
    async def test_though_a_secret_is_a_part_of_a_number_or_has_quotes_in_it(
        self, house: House
    ) -> None:
        name = await house.integration(channel="EVOLUTION")
        message = {
            "id": 9123456780,
            "share": 0.12345678,
            "12345678": True,
            "text": 'the key is "a":{"b\\c or 12345678',
            "a": {"b": 1},
        }
        answer = await house.deliver(name, "messages.upsert", message)
        assert answer.json() == {"status": "queued"}
        (event,) = await whatsapp_events(house)
        del event["data"]["data"]["instance"]
        assert event["data"]["data"] == {
            "id": "[redacted]",
            "share": "[redacted]",
            "[redacted]": True,
            "text": "the key is [redacted] or [redacted]",
            "a": {"b": 1},
        }

    async def test_though_it_holds_what_many_readers_refuse(
        self, house: House, subtests: pytest.Subtests
    ) -> None:
        name = await house.integration(channel="EVOLUTION")
        headers = {"X-Webhook-Token": webhook_token(name)}
        for data in (
            b'{"text":"\\ud800 \\udc00 \\ud83d\\ude00"}',
            b'{"\\udfff":"\\u0000\\u2028"}',
            b'{"n":' + b"9" * 400 + b"}",
            b'{"n":1e308,"m":-0.0,"o":1E-999}',
            '{"text":"\ufeff\u202e\U0010ffff"}'.encode(),
        ):
            with subtests.test(data[:40].decode()):
                await house.redis.delete("wa:events")
                head = f'{{"event":"messages.upsert","instance":"{name}","data":'.encode()
                answer = await house.post(
                    f"/webhooks/evolution/{name}", head + data + b"}", headers
                )
                assert answer.json() == {"status": "queued"}
                (event,) = await whatsapp_events(house)
                json.dumps(event, ensure_ascii=False).encode()  # no half of a character survives


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity"])
def test_a_number_that_no_json_can_say_is_refused(number: bytes) -> None:
    with pytest.raises(BadWebhook):
        read(b'{"event":"x","instance":"y","data":' + number + b"}")


async def test_what_is_refused_for_good_is_told_once_a_minute_and_counted(
    house: House, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = await house.integration(channel="EVOLUTION")
    headers = {"X-Webhook-Token": webhook_token(name)}
    for _ in range(5):
        answer = await house.post(f"/webhooks/evolution/{name}", b'{"event": NaN}', headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "not_a_number")
    said = caplog.text + "".join(capsys.readouterr())
    assert said.count("webhook refused") == 1
    assert await metric(house, "not_a_number") == 5
