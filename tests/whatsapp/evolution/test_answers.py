"""What an answer of the Evolution server proves: a table, and each of its rows tried.

The bodies are those of real 2.3.6 and 2.3.7 servers: ``response.message`` is a text, a list of
one text, or, from the schema's validation, a list in a list.
"""

import asyncio
import errno
import gzip
import json
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey
from httpx_aiohttp.transport import map_aiohttp_exceptions
from hypothesis import given, settings
from hypothesis import strategies as st

from evosaga.sagas.whatsapp.evolution.answers import (
    CREATE_RULES,
    DELETE_RULES,
    HEALTH,
    Answer,
    Operation,
    Presence,
    Verdict,
    classify_create,
    classify_delete,
    health,
)
from evosaga.sagas.whatsapp.evolution.circuit_breaker import CallOutcome
from evosaga.sagas.whatsapp.evolution.evidence import PRESENCE_RULES, read_look
from evosaga.sagas.whatsapp.evolution.transport import (
    LARGEST_BODY,
    may_have_been_sent,
    read_answer,
)
from tests.support.fuzzing import fuzzed

SECRET = "the-global-key"


def said(status: int, message: Any, error: str = "Bad Request") -> Any:
    return {"status": status, "error": error, "response": {"message": message}}


def in_all_shapes(status: int, text: str) -> list[tuple[int, Any]]:
    """One message in the three shapes that servers give it."""
    return [(status, said(status, shape)) for shape in (text, [text], [[text]])]


CREATED = {"instance": {"instanceName": "x", "status": "close"}, "hash": "TOKEN", "webhook": {}}
HTML: Any = None
"""A body that is no JSON, such as a proxy's page."""

ODD: list[Any] = [HTML, {}, [], "", "x", 17, {"response": None}]

ROWS: list[tuple[Verdict, list[tuple[int, Any]]]] = [
    (
        Verdict.LANDED,
        [(201, CREATED), (201, {}), (201, []), (201, HTML), (201, {"error": True})],
    ),
    (
        Verdict.REJECTED,
        [
            *in_all_shapes(400, "Invalid integration"),
            *in_all_shapes(400, 'number does not match pattern "^\\d+[\\.@\\w-]+"'),
            *in_all_shapes(400, "token is required"),
            *in_all_shapes(400, "number is required"),
            *in_all_shapes(400, 'The "instanceName" cannot be empty'),
            *in_all_shapes(400, "Invalid proxy"),
            *in_all_shapes(400, "INVALID INTEGRATION"),
            *((status, HTML) for status in (413, 414, 415)),
            (413, said(413, "request entity too large", "Payload Too Large")),
        ],
    ),
    (
        Verdict.MISCONFIGURED,
        [
            *in_all_shapes(401, "Unauthorized"),
            (401, HTML),
            # No name in use: a proxy, a firewall, or a key that got lost on the way.
            *in_all_shapes(403, "Missing global api key"),
            (403, HTML),
            (403, {"message": "Forbidden"}),
            (500, said(500, "Not allowed by CORS", "Internal Server Error")),
            *in_all_shapes(404, "Cannot POST /instance/create"),
            (404, HTML),
            *((status, HTML) for status in (300, 301, 302, 303, 304, 307, 308, 399)),
            (503, {"error": "service not activated", "code": "LICENSE_REQUIRED"}),
        ],
    ),
    (Verdict.BUSY, [(429, HTML), (429, {"retry": "later"})]),
    (
        Verdict.OUTAGE,
        [(503, HTML), (503, {}), (503, said(503, "Service Unavailable")), (503, "down")],
    ),
    (
        Verdict.AMBIGUOUS,
        [
            # A name in use may well be ours, from an attempt that timed out.
            *in_all_shapes(403, 'This name "x" is already in use.'),
            # Any exception in a create answers 400 and removes by name a moment later.
            *in_all_shapes(400, "Cannot read properties of undefined (reading 'length')"),
            *in_all_shapes(400, "[object Object]"),
            *in_all_shapes(400, "\nInvalid `this.prisma.instance.create()` invocation"),
            *((400, body) for body in ODD),
            *((status, HTML) for status in (200, 202, 204, 402, 405, 408, 409, 416, 422)),
            (200, {"error": True, "message": "[object Object]"}),
            *((status, HTML) for status in (500, 501, 502, 504, 520, 599)),
            (500, said(500, "Internal Server Error", "Internal Server Error")),
            (0, HTML),
            (100, HTML),
            (999, HTML),
            # Words that belong to another status prove nothing.
            (500, said(500, "Invalid integration")),
            (500, {"code": "LICENSE_REQUIRED"}),
            (400, {"code": "LICENSE_REQUIRED"}),
        ],
    ),
]


def test_an_answer_to_a_create_proves_no_more_than_this() -> None:
    for verdict, cases in ROWS:
        for status, body in cases:
            told = classify_create(Answer(status, body, f"HTTP {status}"))
            assert told is verdict, (status, body)


def test_every_row_of_the_table_is_tried() -> None:
    answers = [(status, json.dumps(body).lower()) for _, cases in ROWS for status, body in cases]
    for status, words, verdict in CREATE_RULES:
        statuses = {status} if isinstance(status, int) else set(status)
        assert any(at in statuses and words in body for at, body in answers), (status, words)
        assert verdict in {found for found, _ in ROWS}


LICENCE = {"error": "service not activated", "code": "LICENSE_REQUIRED"}
DELETED = {"status": "SUCCESS", "error": False, "response": {"message": "Instance deleted"}}

DELETE_ROWS: list[tuple[Verdict, list[tuple[int, Any]]]] = [
    (
        Verdict.LANDED,
        [
            (200, DELETED),
            (200, HTML),
            *in_all_shapes(404, 'The "x" instance does not exist'),
            (404, HTML),
        ],
    ),
    (Verdict.REJECTED, [*in_all_shapes(400, "[object Object]"), (400, HTML)]),
    (
        Verdict.MISCONFIGURED,
        [
            *((status, HTML) for status in (301, 302, 307, 308, 403)),
            (503, LICENCE),
            (500, said(500, "Not allowed by CORS")),
        ],
    ),
    (Verdict.BUSY, [(429, HTML)]),
    (Verdict.OUTAGE, [(503, HTML), (503, "down")]),
    (
        Verdict.AMBIGUOUS,
        [
            (200, {"error": True, "message": "[object Object]"}),
            # Not our token any more, or Evolution without its database: a look will tell.
            *in_all_shapes(401, "Unauthorized"),
            *((status, HTML) for status in (0, 201, 204, 408, 500, 502, 504, 599)),
            *in_all_shapes(500, "Error: Connection Closed"),
        ],
    ),
]


def test_an_answer_to_a_delete_proves_no_more_than_this() -> None:
    for verdict, cases in DELETE_ROWS:
        for status, body in cases:
            assert classify_delete(Answer(status, body, "")) is verdict, (status, body)
            unsent = classify_delete(Answer(status, body, "", sent=False))
            assert unsent is Verdict.NOT_SENT, (status, body)


EVERYBODY, OURS, GLOBAL = (
    set(Operation),
    {Operation.STATE, Operation.OWN, Operation.DELETE, Operation.CONNECT},
    {
        Operation.CREATE,
        Operation.LIST,
        Operation.NAMED,
    },
)

HEALTH_ROWS: list[tuple[CallOutcome, set[Operation], list[tuple[int, Any]]]] = [
    (
        CallOutcome.SICK,
        EVERYBODY,
        [(status, HTML) for status in (0, 408, 425, 500, 502, 503, 504, 520, 599)]
        + [(500, said(500, "Error: Connection Closed")), (503, said(503, "Service Unavailable"))],
    ),
    (
        CallOutcome.MISCONFIGURED,
        EVERYBODY,
        [(status, HTML) for status in (301, 302, 308, 403)]
        + [(503, LICENCE), (500, said(500, "Not allowed by CORS"))]
        + in_all_shapes(403, "Missing global api key"),
    ),
    (CallOutcome.WELL, {Operation.CREATE}, in_all_shapes(403, 'This name "x" is already in use.')),
    (CallOutcome.MISCONFIGURED, GLOBAL, [*in_all_shapes(401, "Unauthorized"), (401, HTML)]),
    (
        CallOutcome.MISCONFIGURED,
        {Operation.CREATE, Operation.LIST},
        [(404, said(404, ["Cannot GET /x"]))],
    ),
    # An instance's own token that is refused, or a name that nobody has, says nothing about the
    # server but that it answers.
    (CallOutcome.WELL, OURS, [*in_all_shapes(401, "Unauthorized"), (404, HTML)]),
    (CallOutcome.WELL, {Operation.NAMED}, in_all_shapes(404, 'Instance "x" not found')),
    (
        CallOutcome.WELL,
        EVERYBODY,
        [(200, []), (200, {"error": True}), (201, CREATED)]
        + [(status, HTML) for status in (400, 413, 429)],
    ),
]


def test_an_answer_says_this_about_the_server() -> None:
    for verdict, whom, cases in HEALTH_ROWS:
        for asked in sorted(whom):
            for status, body in cases:
                told = health(asked, Answer(status, body, ""))
                assert told is verdict, (asked, status, body)


def test_every_row_of_the_other_tables_is_tried() -> None:
    deletes = [
        (status, json.dumps(body).lower()) for _, cases in DELETE_ROWS for status, body in cases
    ]
    for status, words, _ in DELETE_RULES:
        statuses = {status} if isinstance(status, int) else set(status)
        assert any(at in statuses and words in body for at, body in deletes), (status, words)
    looks = {(asked, status, result) for asked, status, _, result in LOOK_ROWS}
    for question, status, _, result, _ in PRESENCE_RULES:
        assert (question, status, result) in looks
    states = {
        (asked, status) for _, whom, cases in HEALTH_ROWS for asked in whom for status, _ in cases
    }
    for whom, status, _, _ in HEALTH:
        statuses = {status} if isinstance(status, int) else set(status)
        assert any(asked in whom and at in statuses for asked, at in states), (whom, status)


# --- looking -----------------------------------------------------------------------------------

OUR_ROW = {"name": "x", "token": "T", "connectionStatus": "close"}
THEIR_ROW = {"name": "x", "token": "another"}
OTHERS = [
    {"name": "y", "token": "T"},
    {"name": "X", "token": "T"},
    {"name": ""},
    {"instance": {"instanceName": "z", "apikey": "T"}},
]
OUR_OLD_ROW = {"instance": {"instanceName": "x", "apikey": "T", "status": "open"}}
ODDITIES: list[Any] = [{}, 17, None, {"name": None}, {"name": 5}, {"instance": {"name": None}}]

LOOK_ROWS: list[tuple[Operation, int, Any, Presence | Operation]] = [
    (Operation.STATE, 200, {"instance": {"instanceName": "x", "state": "open"}}, Presence.MINE),
    (Operation.STATE, 200, {"instance": {"instanceName": "x"}}, Presence.HALF),
    (Operation.STATE, 200, {"error": True}, Presence.UNKNOWN),
    (Operation.STATE, 200, [None], Presence.UNKNOWN),
    (Operation.STATE, 200, {"instance": {"state": 1e400}}, Presence.UNKNOWN),
    (Operation.STATE, 401, said(401, "Unauthorized"), Operation.NAMED),
    (Operation.STATE, 404, said(404, ['The "x" instance does not exist']), Operation.OWN),
    (Operation.NAMED, 200, [OUR_ROW], Presence.MINE),
    (Operation.NAMED, 200, [*OTHERS, OUR_ROW], Presence.MINE),
    (Operation.NAMED, 200, [THEIR_ROW], Presence.FOREIGN),
    (Operation.NAMED, 200, [OUR_OLD_ROW], Presence.MINE),
    (Operation.NAMED, 200, [{"instance": {"instanceName": "x", "apikey": "U"}}], Presence.FOREIGN),
    (Operation.NAMED, 200, [{"instanceName": "x", "token": "U"}], Presence.FOREIGN),
    (Operation.NAMED, 200, [{"name": "x", "token": None}], Presence.UNKNOWN),
    *((Operation.NAMED, 200, [*OTHERS, odd], Presence.UNKNOWN) for odd in ODDITIES),
    (Operation.NAMED, 200, [], Presence.HALF),
    (Operation.NAMED, 200, OTHERS, Presence.HALF),
    (Operation.NAMED, 200, {"error": True}, Presence.UNKNOWN),
    (Operation.NAMED, 404, said(404, ['Instance "x" not found']), Presence.UNKNOWN),
    (Operation.NAMED, 401, said(401, "Unauthorized"), Presence.UNKNOWN),
    (Operation.OWN, 404, said(404, ['Instance "x" not found']), Presence.HALF),
    (Operation.OWN, 404, said(404, ["Cannot GET"]), Presence.UNKNOWN),
    (Operation.OWN, 200, [OUR_ROW], Presence.HALF),
    (Operation.OWN, 200, [], Operation.LIST),
    (Operation.OWN, 200, OTHERS, Operation.LIST),
    (Operation.OWN, 401, said(401, "Unauthorized"), Operation.LIST),
    (Operation.LIST, 200, [*OTHERS, OUR_ROW], Presence.HALF),
    (Operation.LIST, 200, [*OTHERS, THEIR_ROW], Presence.HALF),
    (Operation.LIST, 200, [{"name": "x"}], Presence.HALF),
    (Operation.LIST, 200, [], Presence.ABSENT),
    (Operation.LIST, 200, OTHERS, Presence.ABSENT),
    (Operation.LIST, 200, [*OTHERS, OUR_OLD_ROW], Presence.HALF),
    (Operation.LIST, 200, [{"instanceName": "x"}], Presence.HALF),
    (Operation.LIST, 200, [*ODDITIES, OUR_ROW], Presence.HALF),
    *((Operation.LIST, 200, [*OTHERS, odd], Presence.UNKNOWN) for odd in ODDITIES),
    (Operation.LIST, 200, {}, Presence.UNKNOWN),
    (Operation.LIST, 200, HTML, Presence.UNKNOWN),
    (Operation.LIST, 401, said(401, "Unauthorized"), Presence.UNKNOWN),
]


def test_an_answer_to_a_look_proves_no_more_than_this() -> None:
    for asked, status, body, result in LOOK_ROWS:
        found, evidence = read_look(asked, Answer(status, body, f"HTTP {status}"), "x", "T")
        assert found is result, (asked, status, body)
        assert bool(evidence) is isinstance(found, Presence), "who concludes something says why"


@settings(deadline=None, derandomize=True)
@given(
    st.sampled_from([Operation.STATE, Operation.NAMED, Operation.OWN, Operation.LIST]),
    st.integers(0, 999).filter(lambda status: status not in (200, 401, 404)),
    st.sampled_from([*ODD, [OUR_ROW], [THEIR_ROW], CREATED]),
)
def test_no_trouble_of_the_server_shows_or_hides_an_instance(
    asked: Operation, status: int, body: Any
) -> None:
    assert read_look(asked, Answer(status, body, ""), "x", "T")[0] is Presence.UNKNOWN


def test_a_token_never_gets_into_the_evidence() -> None:
    for asked, status, body, _ in LOOK_ROWS:
        _, evidence = read_look(asked, Answer(status, body, "HTTP 200"), "x", "secret-token")
        assert "secret-token" not in evidence


def test_what_was_not_sent_proves_itself_whatever_else_is_said() -> None:
    assert classify_create(Answer(0, None, "refused", sent=False)) is Verdict.NOT_SENT
    assert classify_create(Answer(201, CREATED, "?", sent=False)) is Verdict.NOT_SENT


@fuzzed(
    st.integers(0, 999),
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    few=25,
    many=100,
)
def test_only_a_201_can_have_landed_and_nothing_sent_can_be_not_sent(
    status: int, body: Any
) -> None:
    verdict = classify_create(Answer(status, body, ""))
    assert (verdict is Verdict.LANDED) is (status == 201)
    assert verdict is not Verdict.NOT_SENT


def test_no_trouble_of_the_server_passes_for_a_refusal() -> None:
    """A refusal undoes without looking, so only words that the server chose itself count."""
    for status in (*range(100, 200), *range(500, 600)):
        for body in (*ODD, said(status, "Invalid integration"), said(status, ["is required"])):
            verdict = classify_create(Answer(status, body, ""))
            assert verdict in (Verdict.AMBIGUOUS, Verdict.OUTAGE), (status, body)


# --- reading what came back --------------------------------------------------------------------


def read(content: bytes, status: int = 200, **headers: str) -> Answer:
    response = httpx.Response(status, content=content, headers=headers)
    return asyncio.run(read_answer(response, LARGEST_BODY, SECRET))


def test_a_body_of_json_is_read() -> None:
    assert read(b'{"a":[1]}', 201) == Answer(201, {"a": [1]}, "HTTP 201")


def test_what_a_proxy_has_compressed_is_read() -> None:
    answer = read(gzip.compress(b'{"a":[1]}'), 201, **{"content-encoding": "gzip"})
    assert answer == Answer(201, {"a": [1]}, "HTTP 201")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html><h1>502 Bad Gateway</h1></html>", id="html"),
        pytest.param(b'{"instance":{"inst', id="cut"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b"9" * 10_000, id="a number of ten thousand digits"),
    ],
)
def test_a_body_that_is_no_json_is_no_evidence(content: bytes) -> None:
    answer = read(content, 502)
    assert (answer.status, answer.body, answer.text) == (502, None, "HTTP 502")
    assert classify_create(answer) is Verdict.AMBIGUOUS


def test_a_body_that_is_too_large_is_given_up() -> None:
    answer = read(b'["' + b"x" * LARGEST_BODY + b'"]', 201)
    assert answer == Answer(201, None, "HTTP 201, too large")


def test_a_body_that_repeats_the_key_is_read_without_it() -> None:
    answer = read(json.dumps(said(400, [f"bad key {SECRET}"])).encode(), 400)
    assert SECRET not in repr(answer)
    assert "[redacted]" in repr(answer)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("86400", 300.0),
        ("inf", 300.0),
        ("soon", None),
        ("", None),
        ("1e999", 300.0),
        ("-inf", 0.0),
        # A date, in the three forms that there are, read against the answer's own.
        ("Wed, 21 Oct 2026 07:28:07 GMT", 7.0),
        ("Wednesday, 21-Oct-26 07:28:07 GMT", 7.0),
        ("Wed Oct 21 07:28:07 2026", 7.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Wed, 99 Foo 2026 07:28:07 GMT", None),
        ("Wed, 21 Oct 99999 07:28:07 GMT", None),
        ("5, 10", None),
    ],
)
def test_a_wish_to_come_back_later_is_heard_within_reason(
    header: str, seconds: float | None
) -> None:
    now = "Wed, 21 Oct 2026 07:28:00 GMT"
    assert read(b"", 429, **{"retry-after": header, "date": now}).retry_after == seconds


def test_a_date_without_a_clock_beside_it_is_read_against_ours() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for beside in ({}, {"date": "yesterday"}):
        wish = read(b"", 503, **{"retry-after": at, **beside}).retry_after
        assert wish is not None
        assert 50 < wish <= 60


def test_a_wish_that_is_no_number_is_no_wish() -> None:
    wish = read(b"", 429, **{"retry-after": "nan"}).retry_after
    assert wish is None or 0.0 <= wish <= 300.0


# --- was it sent? ------------------------------------------------------------------------------

WHERE = ConnectionKey("example.org", 443, True, True, None, None, None)
REFUSED = OSError(errno.ECONNREFUSED, "Connect call failed")


def as_httpx_raises_it(cause: Exception) -> Exception:
    """What the transport makes of an error of aiohttp."""
    with pytest.raises(httpx.HTTPError) as raised, map_aiohttp_exceptions():
        raise cause
    return raised.value


@pytest.mark.parametrize(
    "cause",
    [
        aiohttp.ClientConnectorError(WHERE, REFUSED),
        aiohttp.ClientConnectorDNSError(WHERE, OSError(-2, "Name or service not known")),
        aiohttp.ClientConnectorSSLError(WHERE, ssl.SSLError(1, "wrong version number")),
        aiohttp.ClientConnectorCertificateError(WHERE, ssl.CertificateError("expired")),
        aiohttp.ConnectionTimeoutError("Connection timeout to host"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_an_error_of_connecting_proves_that_nothing_was_sent(cause: Exception) -> None:
    assert not may_have_been_sent(as_httpx_raises_it(cause))
    assert not may_have_been_sent(cause)


@pytest.mark.parametrize(
    "cause",
    [
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"),
        aiohttp.ClientOSError(errno.EPIPE, "Broken pipe"),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        aiohttp.SocketTimeoutError("Timeout on reading data from socket"),
        aiohttp.ServerTimeoutError(),
        aiohttp.ClientConnectionError("Connection closed"),
        aiohttp.ClientConnectionResetError("Cannot write to closing transport"),
    ],
    ids=lambda cause: f"{type(cause).__name__} {cause}",
)
def test_a_connection_that_broke_later_proves_nothing(cause: Exception) -> None:
    assert may_have_been_sent(as_httpx_raises_it(cause))
    assert may_have_been_sent(cause)


def test_a_lost_connection_looks_like_a_failed_connect_and_is_told_apart() -> None:
    """Why the cause counts: the transport calls both of them a timeout of connecting."""
    broke = as_httpx_raises_it(aiohttp.ServerDisconnectedError())
    assert isinstance(broke, httpx.ConnectTimeout)
    assert may_have_been_sent(broke)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        OSError(errno.ECONNRESET, "Connection reset by peer"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("garbage"),
        httpx.ConnectError("without a cause there is no proof"),
    ],
    ids=repr,
)
def test_in_case_of_doubt_itmay_have_been_sent(error: Exception) -> None:
    assert may_have_been_sent(error)
