"""What webhooks say and what they come to, without any server."""

import base64
import hashlib
import hmac
import json
import time
from datetime import datetime, timedelta
from functools import reduce
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosaga.orchestrator.whatsapp.webhooks.authentication import SKEW, is_signed
from evosaga.orchestrator.whatsapp.webhooks.payloads import (
    DEEPEST,
    LARGEST,
    BadWebhook,
    ConnectionHint,
    Ignored,
    MergedHint,
    Message,
    merge,
    others_named,
    read,
    understand,
)
from evosaga.sagas.whatsapp.ownership import KeyRing

NOON = datetime(2026, 1, 1, 12)


def hint(state: Any, seconds: float = 0.0, reason: int | None = 200) -> ConnectionHint:
    return ConnectionHint(
        "ours", "connection.update", NOON + timedelta(seconds=seconds), "", state, reason
    )


def body(event: str, data: Any, **more: Any) -> dict[str, Any]:
    at = {"date_time": "2026-01-01T12:00:00.000Z", "apikey": "SECRET", "server_url": "http://evo"}
    return {"event": event, "instance": "ours", "data": data} | at | more


hints = st.builds(
    hint,
    st.sampled_from(["connecting", "open", "refused", "close", None]),
    st.integers(0, 5),
    st.sampled_from([None, 200, 401, 428]),
)


@pytest.mark.fault("w4")
@given(st.lists(hints, max_size=6), st.randoms(use_true_random=False))
def test_hints_come_to_the_same_in_any_order_and_however_often(
    told: list[ConnectionHint], random: Any
) -> None:
    shuffled = [*told, *told[::2]]
    random.shuffle(shuffled)
    assert reduce(merge, shuffled, MergedHint()) == reduce(merge, told, MergedHint())


@pytest.mark.fault("w4")
@given(st.lists(hints, min_size=1, max_size=6))
def test_nothing_older_than_the_newest_is_ever_believed(told: list[ConnectionHint]) -> None:
    heard = reduce(merge, told, MergedHint())
    newest = max((it.at for it in told if it.state is not None), default=None)
    assert heard.at == newest


@pytest.mark.fault("w4")
def test_open_and_close_are_told_apart_by_evolutions_clock_alone() -> None:
    told = [hint("open", 1), hint("close", 2), hint("open", 3), hint("connecting", 0)]
    assert {reduce(merge, order, MergedHint()).state for order in permutations(told)} == {"open"}


def test_at_the_same_millisecond_the_open_counts_and_not_the_connecting_before_it() -> None:
    for order in permutations([hint("connecting"), hint("open")]):
        assert reduce(merge, order, MergedHint()).state == "open"


@pytest.mark.parametrize(
    ("event", "data", "state", "reason"),
    [
        ("connection.update", {"state": "open", "statusReason": 200}, "open", 200),
        ("CONNECTION_UPDATE", {"state": "close", "statusReason": 401}, "close", 401),
        ("connection.update", {"state": "refused", "statusReason": 428}, "refused", 428),
        ("connection.update", {"state": "exploded"}, None, None),
        ("connection.update", {"state": ["open"], "statusReason": True}, None, None),
        ("connection.update", None, None, None),
        ("status.instance", {"status": "closed", "disconnectionReasonCode": 403}, "close", 403),
        ("logout.instance", None, "close", None),
        ("qrcode.updated", {"qrcode": {"code": "2@x", "base64": "data:image/png;x"}}, None, None),
        ("qrcode.updated", {"message": "limit reached", "statusCode": 500}, "refused", 500),
    ],
)
def test_what_is_about_a_connection_becomes_a_hint(
    event: str, data: Any, state: str | None, reason: int | None
) -> None:
    told = understand(body(event, data))
    assert isinstance(told, ConnectionHint)
    assert (told.instance_name, told.state, told.reason) == ("ours", state, reason)
    assert told.at == NOON


def test_a_time_is_taken_as_wall_clock_since_its_zone_is_false() -> None:
    for said, at in {
        "2026-01-01T12:00:00.000Z": NOON,
        "2026-01-01T12:00:00.000-03:00": NOON,
        "not a time": datetime.min,
        None: datetime.min,
        17: datetime.min,
    }.items():
        told = understand(body("connection.update", {"state": "open"}, date_time=said))
        assert isinstance(told, ConnectionHint)
        assert told.at == at


def test_a_qr_code_is_read_and_anything_strange_about_it_left_out() -> None:
    shown = {"code": "2@a,b", "base64": "data:image/png;base64,xx", "pairingCode": "ABCD1234"}
    told = understand(body("qrcode.updated", {"qrcode": {"instance": "ours", **shown}}))
    assert isinstance(told, ConnectionHint)
    assert told.is_about_qr
    assert told.code == {
        "base64": "data:image/png;base64,xx",
        "code": "2@a,b",
        "pairing_code": "ABCD1234",
    }
    odd = {"code": "2@a,b", "base64": "javascript:alert(1)", "pairingCode": ["x"]}
    told = understand(body("qrcode.updated", {"qrcode": odd}))
    assert isinstance(told, ConnectionHint)
    assert told.code == {"base64": None, "code": "2@a,b", "pairing_code": None}
    assert "2@a,b" not in repr(told), "a QR code must not end up in a log line"


@pytest.mark.parametrize("event", ["instance.create", "instance.delete", "REMOVE_INSTANCE"])
def test_what_the_global_webhook_tells_of_an_instances_life_is_nobodys(event: str) -> None:
    assert understand(body(event, None)) == Ignored("ours", event.lower().replace("_", "."))


@pytest.mark.fault("w11")
def test_a_message_is_handed_on_without_any_key() -> None:
    data = {"key": {"id": "1"}, "apikey": "SECRET", "deep": [{"API_KEY": "SECRET", "text": "oi"}]}
    told = understand(body("messages.upsert", data, sender="55@s.whatsapp.net"))
    assert isinstance(told, Message)
    assert told.body == {
        "event": "messages.upsert",
        "data": {"key": {"id": "1"}, "deep": [{"text": "oi"}]},
        "date_time": "2026-01-01T12:00:00.000Z",
        "sender": "55@s.whatsapp.net",
    }
    assert "SECRET" not in str(told.body)


@pytest.mark.fault("w3")
def test_a_repetition_is_recognised_by_what_it_says_and_not_by_where_it_came_in() -> None:
    first = understand(body("messages.upsert", {"id": 1}))
    again = understand(body("messages.upsert", {"id": 1}, destination="elsewhere", apikey=None))
    others = [
        understand(body("messages.upsert", {"id": 2})),
        understand(body("messages.update", {"id": 1})),
        understand(body("messages.upsert", {"id": 1}, instance="theirs")),
        understand(body("messages.upsert", {"id": 1}, date_time="2026-01-01T12:00:00.001Z")),
    ]
    assert all(isinstance(it, Message) for it in (first, again, *others))
    digests = [it.digest for it in (first, again, *others) if isinstance(it, Message)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


@pytest.mark.fault("w2")
@pytest.mark.parametrize(
    ("event", "data", "others"),
    [
        ("connection.update", {"instance": "theirs"}, {"theirs"}),
        ("connection.update", {"instance": "ours"}, set()),
        ("qrcode.updated", {"qrcode": {"instance": "third", "code": "2@x"}}, {"third"}),
        ("messages.upsert", {"instance": "theirs"}, set()),
    ],
)
def test_other_instances_in_a_hint_are_seen_and_a_message_may_quote_what_it_likes(
    event: str, data: Any, others: set[str]
) -> None:
    told = body(event, data)
    assert others_named(understand(told), told) == others


@pytest.mark.fault("w10")
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b"\xff\xfe", "not_utf8"),
        (b"[]", "wrong_shape"),
        (b'"x"', "wrong_shape"),
        (b'{"data": NaN}', "not_a_number"),
        (b'{"data": ' + b"9" * 5000 + b"}", "malformed_json"),
        (b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b'{"data":' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "too_deep"),
        (b" " * (LARGEST + 1), "oversized"),
    ],
)
def test_what_is_no_webhook_is_refused_in_words(raw: bytes, code: str) -> None:
    with pytest.raises(BadWebhook) as refused:
        read(raw)
    assert refused.value.code == code


@pytest.mark.fault("w10")
@pytest.mark.parametrize(
    "told",
    [
        {},
        {"event": "messages.upsert"},
        {"event": "", "instance": "ours"},
        {"event": 5, "instance": "ours"},
        {"event": "x" * 101, "instance": "ours"},
        {"event": "messages.upsert", "instance": "a\nb"},
    ],
)
def test_a_webhook_names_an_event_and_an_instance(told: dict[str, Any]) -> None:
    with pytest.raises(BadWebhook):
        understand(told)


def test_what_json_allows_and_postgres_does_not_is_no_trouble_in_a_message() -> None:
    raw = json.dumps(body("messages.upsert", {"text": "\ud83d \u0000 ok"})).encode()
    assert isinstance(understand(read(raw)), Message)
    assert read(b'{"data":' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}")


NOW = int(time.time())
DEEP = base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".e30.AAAA"


class TestASignedDelivery:
    """Evolution signs with ``jwt_key`` instead of showing the token."""

    def jwt(self, key: str, claims: Any, alg: str = "HS256") -> str:
        parts = [json.dumps(it).encode() for it in ({"alg": alg, "typ": "JWT"}, claims)]
        head = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        signature = hmac.new(key.encode(), head, hashlib.sha256).digest()
        return (head + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()

    def test_is_believed_while_it_is_valid(self) -> None:
        token = self.jwt("key", {"iat": NOW - 300, "exp": NOW + 86_400})
        assert is_signed(token, "key")
        assert not is_signed(token, "another key")
        assert not is_signed(token[:-3] + "AAA", "key")

    @pytest.mark.fault("k4")
    def test_clocks_may_differ_by_a_minute_and_no_more(self) -> None:
        def valid(since: float, until: float) -> bool:
            now = time.time()
            return is_signed(self.jwt("key", {"iat": now + since, "exp": now + until}), "key")

        near, far = SKEW - 30, SKEW + 30
        assert valid(near, 600)
        assert valid(-600, -near)
        assert not valid(far, 600)
        assert not valid(-600, -far)

    @pytest.mark.parametrize(
        "claims",
        [
            {},
            [],
            "x",
            {"exp": "soon"},
            {"exp": None, "iat": 1},
            {"exp": [NOW]},
            {"exp": -1e400},
        ],
    )
    def test_must_say_until_when(self, claims: Any) -> None:
        assert not is_signed(self.jwt("key", claims), "key")

    def test_may_say_more_than_anybody_asks(self) -> None:
        more = {"exp": NOW + 86_400, "aud": "x", "iss": 1, "sub": 2, "jti": 3}
        assert is_signed(self.jwt("key", more), "key")

    def test_must_name_its_algorithm(self) -> None:
        assert not is_signed(self.jwt("key", {"exp": NOW + 86_400}, alg="none"), "key")
        assert not is_signed(self.jwt("key", {"exp": NOW + 86_400}, alg="HS512"), "key")

    @pytest.mark.parametrize(
        "token", ["", ".", "..", "a.b.c", "é.é.é", "\udcff.a.b", "a" * 10_000, DEEP, "1.1.1"]
    )
    def test_may_be_garbage(self, token: str) -> None:
        assert not is_signed(token, "key")

    def test_is_not_believed_under_a_key_of_another_kind(self) -> None:
        key = "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"
        assert not is_signed(self.jwt(key, {"exp": NOW + 86_400}), key)


class TestTheTokens:
    """What Evolution is given to show, and what is taken from it."""

    OLD, NEW = (
        "an-old-secret-of-thirty-two-bytes-or-more",
        "a-new-secret-of-thirty-two-bytes-or-more",
    )

    @pytest.mark.fault("w14")
    def test_those_of_all_keys_are_taken_and_that_of_the_first_is_given(self) -> None:
        saga_id = UUID(int=1)
        old, both = KeyRing([self.OLD]), KeyRing([self.NEW, self.OLD])
        given = both.webhook_token(saga_id, both.current)
        before = old.webhook_token(saga_id, old.current)
        assert both.webhook_tokens(saga_id) == (given, before)
        assert both.global_webhook_tokens()[1] == old.global_webhook_tokens()[0]

    def test_the_global_one_is_nobody_elses(self) -> None:
        ring = KeyRing([self.NEW])
        (everybodys,) = ring.global_webhook_tokens()
        assert everybodys not in ring.webhook_tokens(UUID(int=1))
        assert everybodys != ring.instance_token(UUID(int=1), ring.current)
        assert len(everybodys) == 64
