"""Who comes in, how often, and what a key, a session or a proxy may not do at the doors."""

import asyncio
import base64
import itertools
import json
import re
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import pytest

from evosaga.orchestrator.api.auth import COOKIE, CSRF_HEADER, Authenticator, Caller
from evosaga.orchestrator.api.concurrency import MOST, STREAMS, WAITS, held
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.middleware import RateLimiter, address_of
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.config.api_keys import read_api_keys
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import (
    API_KEYS,
    CREATE,
    OUR_KEY,
    OURS,
    THEIR_KEY,
    asked,
    client_with,
    problem,
    served,
)
from tests.api.pages import signed_in
from tests.api.standing import ONES
from tests.conftest import SECRET
from tests.support.waiting import eventually

database_url, redis, evolution, settings, parts, address_ = ONES

BASIC = "Basic " + base64.b64encode(b"ops:secret").decode()
JWT = "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbmEifQ.c2lnbmF0dXJl"


# --- whose Authorization it is ----------------------------------------------------------------


async def test_what_a_proxy_puts_into_authorization_hides_no_key_and_no_session(
    address_: str, subtests: pytest.Subtests
) -> None:
    async with client_with(address_, None) as client, signed_in(address_, OUR_KEY) as browser:
        for theirs in (BASIC, JWT, "Negotiate abc", "Bearer", "", "nonsense", "Bearer x"):
            headers = {"Authorization": theirs}
            with subtests.test(theirs=theirs):
                with_key = headers | {"X-API-Key": OUR_KEY}
                assert (await client.get("/sagas?limit=1", headers=with_key)).status_code == 200
                alone = await client.get("/sagas?limit=1", headers=headers)
                assert (alone.status_code, problem(alone)["code"]) == (401, "unauthorized")
                wrong = await client.get("/sagas", headers=headers | {"X-API-Key": "wrong"})
                assert wrong.status_code == 401
                assert (await browser.get("/ui/sagas", headers=headers)).status_code == 200
                assert (await browser.get("/sagas?limit=1", headers=headers)).status_code == 200
                # A header that is no key does not spare a session's form its token.
                forged = await browser.post(CREATE, json=asked(), headers=headers)
                assert (forged.status_code, problem(forged)["code"]) == (403, "forbidden")


async def test_of_two_authorizations_the_one_that_is_ours_counts(address_: str) -> None:
    async with client_with(address_, None) as client:
        for order in ((BASIC, f"Bearer {OUR_KEY}"), (f"bearer  {OUR_KEY}", BASIC)):
            headers = [("Authorization", one) for one in order]
            assert (await client.get("/sagas?limit=1", headers=headers)).status_code == 200


# --- sessions ---------------------------------------------------------------------------------


async def test_a_copied_cookie_opens_nothing_once_its_session_was_signed_out(
    parts: AppContext,
) -> None:
    async with served(parts) as one, served(parts) as other:
        async with signed_in(one, OUR_KEY) as browser:
            kept = browser.cookies[COOKIE]
            cookie = {"Cookie": f"{COOKIE}={kept}"}
            # The last letter of a base64 signature holds two bits that nothing depends on.
            alike = {"Cookie": f"{COOKIE}={kept[:-1]}{chr(ord(kept[-1]) + 1)}"}
            page = (await browser.get("/ui/sagas")).text
            token = re.findall(r'name="csrf" value="([^"]+)"', page)[0]
            async with client_with(other, None) as thief:
                assert (await thief.get("/ui/sagas", headers=cookie)).status_code == 200
            await browser.post("/ui/logout", data={"csrf": token})
        for where in (one, other):
            async with client_with(where, None) as thief:
                assert (await thief.get("/ui/sagas", headers=cookie)).status_code == 303
                assert (await thief.get("/ui/sagas", headers=alike)).status_code == 303
                assert (await thief.get("/ui/login", headers=cookie)).status_code == 200
                assert (await thief.get("/sagas", headers=cookie)).status_code == 401
                write = cookie | {CSRF_HEADER: token}
                assert (await thief.post(CREATE, json=asked(), headers=write)).status_code == 401
        async with signed_in(other, OUR_KEY) as browser:
            assert (await browser.get("/ui/sagas")).status_code == 200


def test_what_signs_a_form_signs_no_session_and_the_other_way_round() -> None:
    keeper = Authenticator(read_api_keys(API_KEYS), [SECRET])
    session = keeper.open_session(OUR_KEY)
    assert session is not None
    body, _, signature = session.rpartition(".")
    assert keeper.csrf_token(body) != signature
    assert not keeper.csrf_holds(body, signature)
    for text in ("x", body, "csrf/x", base64.urlsafe_b64encode(b"{}").decode()):
        assert keeper.caller_for_session(f"{text}.{keeper.csrf_token(text)}") is None


# --- forged things ----------------------------------------------------------------------------


def cursor_of(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


SOME_ID = "4e8ddba1-ad52-4613-9a03-ec64636b3f6c"
CURSORS = [
    *("", "x", "é", "====", "%00", "a" * 200, "a" * 201, "a" * 50_000, "-1", "\N{PILE OF POO}"),
    *map(cursor_of, (None, 1, [], {}, [1, 2], [None, None], ["x", "y"], [[], {}])),
    *(
        cursor_of([at, SOME_ID])
        for at in (
            "2026-01-01",
            "2026-01-01T00:00:00",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "0001-01-01T00:00:00",
            "9999-12-31T23:59:59.999999",
        )
    ),
    cursor_of(["2026-01-01T00:00:00+00:00", SOME_ID, "more"]),
    cursor_of(["2026-01-01T00:00:00+00:00", "\x00"]),
]


async def test_a_forged_cursor_is_the_callers_mistake(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    routes = ("/sagas", "/integrations", "/ui/sagas", "/ui/integrations")
    for route, cursor in itertools.product(routes, CURSORS):
        with subtests.test(route=route, cursor=cursor[:60]):
            answer = await operator.get(route, params={"cursor": cursor})
            assert answer.status_code < 500, answer.text


async def test_a_time_that_no_calendar_has_is_the_callers_mistake(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    times = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x")
    for route, since in itertools.product(("/sagas", "/ui/sagas"), times):
        with subtests.test(route=route, since=since):
            answer = await operator.get(route, params={"since": since})
            assert answer.status_code < 500, answer.text[:300]


async def test_a_forged_place_in_a_history_is_the_callers_mistake(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    body = asked(organization_id=str(uuid.uuid4()))
    saga = (await operator.post(CREATE, json=body)).json()["saga_id"]
    for cursor in ("x", "-2", "9" * 30, "1e3", "0.5", "é", ""):
        with subtests.test(cursor=cursor):
            answer = await operator.get(f"/sagas/{saga}/events", params={"cursor": cursor})
            assert answer.status_code == 422
            headers = {b"Last-Event-ID": cursor.encode()}
            stream = await operator.get(f"/sagas/{saga}/stream", headers=headers)
            assert stream.status_code == 200


async def test_a_forged_token_is_nobodys(
    nobody: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for value in ("x" * 30_000, "é.é", ".", "a.b.c", "null.", "%00.%00"):
        with subtests.test(value=value[:20]):
            await opens_nothing(nobody, value)


async def opens_nothing(nobody: httpx.AsyncClient, value: str) -> None:
    raw = value.encode()
    for headers in (
        {b"Cookie": COOKIE.encode() + b"=" + raw},
        {b"X-API-Key": raw},
        {b"Authorization": b"Bearer " + raw},
    ):
        for path in ("/sagas", "/ui/sagas", "/metrics"):
            answer = await nobody.get(path, headers=headers)
            assert answer.status_code in (401, 303, 429)
    answer = await nobody.post(f"/webhooks/evolution?token={value[:5000]}", json={})
    assert 400 <= answer.status_code < 500
    hook = {b"X-Webhook-Token": raw, b"Authorization": b"Bearer " + raw}
    answer = await nobody.post(f"/webhooks/evolution/wa-{SOME_ID}", headers=hook, json={})
    assert answer.status_code == 401


# --- how often --------------------------------------------------------------------------------


def through(rates: RateLimiter, name: str) -> bool:
    try:
        rates.spend(name)
    except Problem:
        return False
    return True


@pytest.mark.parametrize("each", [0.001, 0.0003, 0.24, 1.0])
def test_a_limit_lets_through_what_it_promises_however_hard_one_tries(
    monkeypatch: pytest.MonkeyPatch, each: float
) -> None:
    now = 1000.0
    monkeypatch.setattr("evosaga.orchestrator.api.middleware.time.monotonic", lambda: now)
    rates, rate = RateLimiter(100.0), 100.0
    seconds = min(20.0, 10_000 * each)
    passed = Counter[str]()
    for _ in range(int(seconds / each)):
        now += each
        for name in ("one", "other"):
            passed[name] += through(rates, name)
    asked_for = int(seconds / each)
    promised = min(asked_for, int(200 + rate * seconds))
    for name in ("one", "other"):
        assert abs(passed[name] - promised) <= 2


def test_who_waits_as_long_as_he_is_told_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("evosaga.orchestrator.api.middleware.time.monotonic", lambda: now)
    rates = RateLimiter(0.3)
    assert through(rates, "a")
    for _ in range(5):
        with pytest.raises(Problem) as refused:
            rates.spend("a")
        assert refused.value.headers is not None
        now += int(refused.value.headers["Retry-After"])
        assert through(rates, "a")


async def test_wrong_keys_are_slowed_down_and_right_ones_are_not(
    parts: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_tenth(rate: float, burst: float | None = None, said: str = "{rate}") -> RateLimiter:
        assert burst in (None, 200)
        return RateLimiter(rate, burst and burst / 10, said)

    monkeypatch.setattr("evosaga.orchestrator.api.middleware.RateLimiter", a_tenth)
    monkeypatch.setattr("evosaga.orchestrator.api.middleware._MISTAKES", 2)
    async with served(parts) as where:
        async with client_with(where, None) as client:
            codes = Counter[int]()

            async def guess(n: int) -> None:
                how = {"X-API-Key": f"guess-{n}"} if n % 2 else {"Authorization": f"Bearer g{n}"}
                answer = await client.get("/sagas", headers=how)
                codes[answer.status_code] += 1
                if answer.status_code == 429:
                    assert problem(answer)["code"] == "rate_limited"
                    assert int(answer.headers["retry-after"]) >= 1

            for start in range(0, 60, 20):
                await asyncio.gather(*(guess(n) for n in range(start, start + 20)))
            assert 20 <= codes[401] < 60
            assert codes[429] >= 1
            page = await client.post("/ui/login", data={"key": "one more guess"})
            assert page.status_code == 429
            right = {"X-API-Key": OUR_KEY}
            assert (await client.get("/sagas", headers=right)).status_code == 200
            assert (await client.get("/sagas")).status_code == 401, "who shows none guesses none"
            # A proxy's token comes with every request, and is no guess.
            assert (await client.get("/sagas", headers={"Authorization": JWT})).status_code == 401
            assert (await client.get("/ui/login")).status_code == 200
        async with signed_in(where, OUR_KEY) as browser:
            assert (await browser.get("/ui/sagas")).status_code == 200


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_what_one_caller_can_have(host: str, address: str) -> None:
    from starlette.requests import HTTPConnection

    assert address_of(HTTPConnection({"type": "http", "client": (host, 1)})) == address


# --- how many at once -------------------------------------------------------------------------


def test_the_keys_of_an_organization_share_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST, STREAMS, replace(MOST[STREAMS], of_a_key=2, of_an_organization=3))
    taken: Counter[Any] = Counter()
    one, other, operator = Caller("one", OURS), Caller("other", OURS), Caller("operator")
    with held(taken, STREAMS, one), held(taken, STREAMS, one):
        with pytest.raises(Problem, match="this key has 2 streams"), held(taken, STREAMS, one):
            pass
        with held(taken, STREAMS, other):
            with (
                pytest.raises(Problem, match="this organization has 3"),
                held(taken, STREAMS, other),
            ):
                pass
            with held(taken, STREAMS, operator), held(taken, WAITS, other):
                pass
    assert not taken


async def test_more_waits_than_an_organization_may_have_are_refused_before_anything_is_done(
    address_: str,
    evolution: SimulatedEvolution,
    parts: AppContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MOST, WAITS, replace(MOST[WAITS], of_an_organization=1))
    evolution.arm("slow_after", operation="create", seconds=1.0)
    before = evolution.live()
    async with client_with(address_, OUR_KEY) as ours, client_with(address_, THEIR_KEY) as theirs:
        waiting = asyncio.create_task(ours.post(CREATE, json=asked()))
        await eventually(lambda: evolution.live() != before, 20)
        body = {"Idempotency-Key": "the-second"}
        refused = await ours.delete("/integrations/evolution/wa-nothing", headers=body)
        assert (refused.status_code, problem(refused)["code"]) == (429, "too_many_waits")
        assert int(refused.headers["retry-after"]) >= 1
        known = "SELECT count(*) FROM evosaga.sagas WHERE command_id = 'the-second'"
        assert not await parts.pool.fetchval(known)
        at_once = await ours.delete("/integrations/evolution/wa-nothing?wait=0", headers=body)
        assert at_once.status_code in (202, 404)
        assert (await theirs.delete("/integrations/evolution/wa-nothing")).status_code == 404
        assert (await waiting).status_code == 201
        assert (await ours.delete("/integrations/evolution/wa-nothing")).status_code == 404


# --- what a stranger costs --------------------------------------------------------------------


async def test_the_metrics_know_the_methods_and_routes_that_there_are_and_no_others(
    operator: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    for n in range(30):
        await nobody.request(f"BREW{n}", f"/coffee/{n}")
        await nobody.request(f"BREW{n}", "/sagas")
    assert (await nobody.get("/metrics")).status_code == 401
    text = (await operator.get("/metrics")).text
    assert "BREW" not in text
    assert "coffee" not in text
    assert 'method="other"' in text


async def test_a_document_is_written_once_whoever_asks(
    nobody: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    paths = ("/docs", "/docs.css", "/openapi.json", "/asyncapi.json")
    written = {path: await nobody.get(path) for path in paths}
    for place in ("docs_page._page", "docs_page._json", "application.Api.openapi"):
        monkeypatch.delattr(f"evosaga.orchestrator.api.{place}")
    for path, first in written.items():
        with subtests.test(path=path):
            assert first.status_code == 200
            again = await nobody.get(path)
            assert (again.status_code, again.content) == (200, first.content)
            tag = {"If-None-Match": f'W/"x", {first.headers["etag"]}'}
            unchanged = await nobody.get(path, headers=tag)
            assert (unchanged.status_code, unchanged.content) == (304, b"")
            other = await nobody.get(path, headers={"If-None-Match": '"x"'})
            assert other.status_code == 200


async def test_the_docs_show_the_address_at_which_they_were_asked_for(
    nobody: httpx.AsyncClient,
) -> None:
    for host in ("evosaga.example:8443", "<script>x</script>"):
        answer = await nobody.get("/docs", headers={"Host": host})
        assert ".invalid" not in answer.text
        assert "<script>" not in answer.text
    named = await nobody.get("/docs", headers={"Host": "evosaga.example:8443"})
    assert "curl http://evosaga.example:8443/sagas" in named.text
