"""Whatever comes in: a 4xx with a sentence, and never a 500."""

import asyncio
import gzip
import json
import re
import uuid
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from evosaga.events.commands import BadCommand, read_json
from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.middleware import _place
from evosaga.orchestrator.config.settings import Settings
from tests.api.conftest import CREATE, OPERATOR, asked, client_with, problem, served
from tests.api.standing import ONES
from tests.support.driving import count

database_url, redis, evolution, settings, parts, address_ = ONES

DEEP = b"[" * 40 + b"]" * 40

BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "malformed_json"),
    "no json": (b"organization_id=1", 400, "malformed_json"),
    "half": (b'{"organization_id": "', 400, "malformed_json"),
    "not utf-8": (b'{"name": "\xff\xfe"}', 400, "not_utf8"),
    "a list": (b"[1, 2]", 422, "wrong_shape"),
    "null": (b"null", 422, "wrong_shape"),
    "deep": (b'{"a": %s}' % DEEP, 400, "too_deep"),
    "very deep": (b"[" * 30_000, 400, "too_deep"),
    "a key twice": (b'{"name": "a", "name": "b"}', 400, "duplicate_key"),
    "NaN": (b'{"name": NaN}', 400, "not_a_number"),
    "a huge number": (b'{"name": 99999999999999999999999}', 400, "number_out_of_range"),
    "an infinite number": (b'{"name": 1e999}', 400, "number_out_of_range"),
    "a NUL": (b'{"name": "\\u0000"}', 400, "forbidden_character"),
    "a lone surrogate": (b'{"name": "\\ud800"}', 400, "forbidden_character"),
}

DATA: dict[str, dict[str, Any]] = {
    "no organization": {"organization_id": None},
    "a number as organization": {"organization_id": 7},
    "an empty name": {"name": ""},
    "a name of blanks": {"name": "   "},
    "a long name": {"name": "x" * 121},
    "a name with an escape": {"name": "\x1b[31mred"},
    "an unknown field": {"admin": True},
    "a path as instance": {"instance_name": "../../x"},
    "a reserved instance": {"instance_name": "constructor"},
    "a long instance": {"instance_name": "a" * 64},
    "an instance with a newline": {"instance_name": "abc\n"},
    "a channel of no name": {"channel": "SMOKE"},
    "a number with letters": {"number": "0049-call-me"},
    "a url that is none": {"webhook_url": "javascript:alert(1)"},
    "a url with a password": {"webhook_url": "https://u:p@host/"},
    "an object as name": {"name": {"$ne": ""}},
}


async def begun(pool: Pool) -> int:
    """How many sagas there are."""
    return await count(pool, "SELECT count(*) FROM evosaga.sagas")


async def test_a_body_that_can_not_be_read_is_refused_and_says_why(
    operator: httpx.AsyncClient, pool: Pool, subtests: pytest.Subtests
) -> None:
    before = await begun(pool)
    for what, (raw, status, code) in BODIES.items():
        for path in (CREATE, "/commands"):
            with subtests.test(what, path=path):
                answer = await operator.post(path, content=raw)
                assert (answer.status_code, problem(answer)["code"]) == (status, code)
    assert await begun(pool) == before


async def test_data_that_is_wrong_is_refused_and_the_field_is_named(
    operator: httpx.AsyncClient, pool: Pool
) -> None:
    before = await begun(pool)
    for what, wrong in DATA.items():
        (field,) = wrong
        answer = await operator.post(CREATE, json=asked(**wrong))
        told = problem(answer)
        assert (answer.status_code, told["code"]) == (422, "invalid_data"), what
        assert told["detail"].startswith(f"{field}: "), what
        command = {"id": "x", "type": "integration.create", "data": asked(**wrong)}
        assert (await operator.post("/commands", json=command)).status_code == 422, what
    assert await begun(pool) == before


QUERIES = {
    "/sagas?status=lost": "status",
    "/sagas?limit=0": "limit",
    "/sagas?limit=101": "limit",
    "/sagas?limit=x": "limit",
    "/sagas?organization_id=x": "organization_id",
    "/sagas?since=yesterday": "since",
    "/integrations?limit=101": "limit",
    "/integrations?organization_id=1": "organization_id",
    f"/sagas/{uuid.uuid4()}/events?limit=1001": "limit",
    f"/sagas/{uuid.uuid4()}/events?cursor=x": "cursor",
}
CURSORS = ("x", "AAAA", "W10", "bnVsbA", "💥", "WyJ4IiwieCJd", "x" * 201)
REFERENCES = ("%00", "..%2f..", "a%0ab", "%ff", "%F0%9F%92%A5", "x" * 5000)


async def test_a_query_that_is_wrong_is_refused_and_the_field_is_named(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for query, field in QUERIES.items():
        with subtests.test(query):
            answer = await operator.get(query)
            told = problem(answer)
            assert (answer.status_code, told["code"]) == (422, "invalid_data")
            assert told["fields"][0]["where"] == f"query.{field}"
    for wait in ("-1", "301", "nan", "inf", "x", "1e999"):
        with subtests.test("wait", wait=wait):
            answer = await operator.post(f"{CREATE}?wait={wait}", json=asked())
            assert answer.status_code == 422
    for cursor in CURSORS:
        for path in ("/sagas", "/integrations"):
            with subtests.test(path, cursor=cursor):
                answer = await operator.get(path, params={"cursor": cursor})
                assert answer.status_code == 422
                assert problem(answer)["code"] in ("bad_cursor", "invalid_data")


async def test_an_odd_reference_is_one_that_is_not_there(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for reference in REFERENCES:
        for path in (
            f"/sagas/{reference}",
            f"/sagas/{reference}/events",
            f"/integrations/evolution/{reference}",
            f"/sagas?instance_name={reference}",
        ):
            with subtests.test(path):
                answer = await operator.get(path)
                assert answer.status_code in (200, 400, 404, 422)
                if answer.status_code >= 400:
                    problem(answer)


async def test_what_is_not_there_is_a_problem_too(operator: httpx.AsyncClient) -> None:
    answer = await operator.get("/nowhere")
    assert (answer.status_code, problem(answer)["code"]) == (404, "not_found")
    answer = await operator.put("/sagas")
    assert (answer.status_code, problem(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


async def test_a_command_that_is_wrong_is_refused_as_on_the_stream(
    operator: httpx.AsyncClient,
) -> None:
    good = {"id": str(uuid.uuid4()), "type": "integration.create", "data": asked()}
    for changed, status, code in (
        ({"id": ""}, 422, "wrong_shape"),
        ({"id": "x" * 201}, 422, "wrong_shape"),
        ({"id": 7}, 422, "wrong_shape"),
        ({"data": []}, 422, "wrong_shape"),
        ({"specversion": "2.0"}, 422, "wrong_shape"),
        ({"type": "integration.paint"}, 422, "unknown_type"),
        ({"type": "saga.replay", "data": {}}, 422, "invalid_data"),
        ({"type": "saga.replay", "data": {"saga_id": str(uuid.uuid4())}}, 404, "unknown_saga"),
        ({"type": "saga.cancel", "data": {"saga_id": str(uuid.uuid4())}}, 404, "unknown_saga"),
    ):
        answer = await operator.post("/commands", json=good | changed)
        assert (answer.status_code, problem(answer)["code"]) == (status, code), changed
    missing = {name: good[name] for name in ("id", "type")}
    assert problem(await operator.post("/commands", json=missing))["code"] == "wrong_shape"


async def test_steering_takes_a_reason_and_nothing_else(operator: httpx.AsyncClient) -> None:
    saga = (await operator.post(CREATE, json=asked())).json()["saga_id"]
    for verb in ("replay", "cancel"):
        for body in (b"[]", b'{"reason": 7}', b'{"why": "x"}', json.dumps({"reason": "x" * 501})):
            answer = await operator.post(f"/sagas/{saga}/{verb}", content=body)
            assert answer.status_code == 422, body
            problem(answer)
        other = json.dumps({"saga_id": str(uuid.uuid4())})
        assert (await operator.post(f"/sagas/{saga}/{verb}", content=other)).status_code == 422
        done = await operator.post(f"/sagas/{saga}/{verb}", json={"reason": "x"})
        assert (done.status_code, problem(done)["code"]) in (
            (409, "not_replayable"),
            (409, "not_cancellable"),
        )
        assert "completed" in done.json()["detail"]


# --- limits -----------------------------------------------------------------------------------


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(
    operator: httpx.AsyncClient,
) -> None:
    exact = json.dumps({"name": ""})
    padded = exact[:-2] + "x" * (64 * 1024 - len(exact)) + exact[-2:]
    assert (await operator.post(CREATE, content=padded)).status_code == 422
    answer = await operator.post(CREATE, content=padded + " ")
    assert (answer.status_code, problem(answer)["code"]) == (413, "oversized")


async def test_a_body_without_an_announced_length_is_counted_while_it_comes(address_: str) -> None:
    """It never ends, so whoever waits for its end waits for ever."""
    parts = urlsplit(address_)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nX-API-Key: {OPERATOR}\r\n"
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    for _ in range(20):
        writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
    answer = await asyncio.wait_for(reader.readline(), 20)
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_body_that_trickles_is_not_waited_for(
    address_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evosaga.orchestrator.api.middleware._BODY_SECONDS", 0.2)
    parts = urlsplit(address_)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nX-API-Key: {OPERATOR}\r\n"
    writer.write(f"{head}Content-Length: 10\r\n\r\n{{".encode())
    answer = await asyncio.wait_for(reader.readline(), 20)
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_body_whose_length_is_given_twice_is_refused(address_: str) -> None:
    """A proxy that goes by the other header would take the rest for somebody's next request."""
    parts = urlsplit(address_)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nX-API-Key: {OPERATOR}\r\n"
    both = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    writer.write(f"{head}{both}GET /sagas HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 20)).decode()  # until the connection is closed
    assert answer.startswith("HTTP/1.1 400 ")
    assert answer.count("HTTP/1.1") == 1
    assert '"code":"ambiguous_length"' in answer
    assert "connection: close" in answer.lower()
    writer.close()


async def test_a_compressed_body_is_refused(operator: httpx.AsyncClient) -> None:
    raw = gzip.compress(json.dumps(asked()).encode())
    for coding in ("gzip", "br", "deflate", "GZIP", "identity, gzip"):
        answer = await operator.post(CREATE, content=raw, headers={"Content-Encoding": coding})
        assert (answer.status_code, problem(answer)["code"]) == (415, "unsupported_encoding")


async def test_a_key_that_asks_too_often_is_told_to_wait(
    settings: Settings, parts: AppContext
) -> None:
    slow = Settings.model_validate(settings.model_dump() | {"api_rate": 2})
    fields = {name: getattr(parts, name) for name in parts.__slots__}
    async with (
        served(AppContext(**fields | {"settings": slow})) as where,
        client_with(where, OPERATOR) as client,
    ):
        answers = [await client.get("/sagas?limit=1") for _ in range(8)]
        codes = [answer.status_code for answer in answers]
        assert codes[:4] == [200] * 4
        assert 429 in codes
        refused = answers[codes.index(429)]
        assert problem(refused)["code"] == "rate_limited"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/healthz")).status_code == 200


async def test_every_answer_carries_headers_that_keep_browsers_from_mischief(
    operator: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    ids = set()
    for client, path in (
        (operator, "/sagas"),
        (operator, "/nowhere"),
        (nobody, "/sagas"),
        (nobody, "/docs"),
        (nobody, "/healthz"),
    ):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if path == "/docs" else "no-store")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        ids.add(headers["x-request-id"])
    assert len(ids) == 5


async def test_a_key_that_a_terminal_would_obey_is_refused(
    operator: httpx.AsyncClient, pool: Pool, subtests: pytest.Subtests
) -> None:
    before = await begun(pool)
    for key in (b"a\tb", b"a\x85b", b"\x9b31m"):
        with subtests.test(key=key):
            headers = {b"Idempotency-Key": key}
            answer = await operator.post(CREATE, json=asked(), headers=headers)
            refused = (answer.status_code, problem(answer)["code"])
            assert refused == (400, "forbidden_character")
    assert await begun(pool) == before


async def test_our_own_fault_is_a_500_with_an_id_and_without_internals(
    operator: httpx.AsyncClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("evosaga.orchestrator.api.sagas.find_saga", stumble)
    answer = await operator.get(f"/sagas/{uuid.uuid4()}")
    told = problem(answer)
    assert (answer.status_code, told["code"]) == (500, "internal")
    assert told["correlation_id"] == answer.headers["x-request-id"]
    assert told["correlation_id"] in told["detail"]
    assert "hunter2" not in answer.text
    assert "RuntimeError" not in answer.text


RAW = (
    b"GET /sagas HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
    b"GET /sagas HTTP/1.1\r\nHost: x\r\nX-API-Key: \xe9\r\n\r\n",
    b"GET /sagas HTTP/1.1\r\nHost: x\r\nCookie: evosaga_session=\xff.\xff\r\n\r\n",
    b"GET /sagas?a=%zz&status=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /commands HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
    b"POST /commands HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{",
    b"POST /commands HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999999999\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
)


async def test_bytes_that_no_client_would_send_do_no_harm(
    address_: str, subtests: pytest.Subtests
) -> None:
    parts = urlsplit(address_)
    for raw in RAW:
        with subtests.test(raw=raw):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(raw)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            assert b" 500 " not in answer.partition(b"\r\n")[0]
    async with client_with(address_, OPERATOR) as client:
        assert (await client.get("/sagas")).status_code == 200


def test_the_log_names_the_line_of_ours_where_a_request_failed() -> None:
    with pytest.raises(BadCommand) as failed:
        read_json(b"{")
    assert re.fullmatch(r"commands\.py:\d+ read_json", _place(failed.value))
