"""Deliveries to real receivers: until they are taken, in order, signed, and nowhere else."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.alerts import Condition, observe, resolve
from evosaga.events.database import Pool
from evosaga.orchestrator.config.receivers import Receiver, read_receivers
from evosaga.orchestrator.config.settings import SettingsError, load_settings
from evosaga.orchestrator.maintenance.alerts import outbox, sending, view
from evosaga.orchestrator.maintenance.alerts.dispatcher import Dispatcher, Posting
from evosaga.orchestrator.maintenance.alerts.messages import keys_of, told_secret
from tests.support.receiving import StubReceiver, receiving

GONE = Condition("workers", "workers", "none alive <here>", "start one", "critical", after=0.0)
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def stub() -> AsyncIterator[StubReceiver]:
    async with receiving() as stub:
        yield stub


def dispatcher(
    pool: Pool, redis: Redis, stub: StubReceiver, *, private: bool = True, **more: Any
) -> Dispatcher:
    """One with the receiver ``ops``."""
    receiver = Receiver(SecretStr(stub.url), **more)
    posting = Posting({"ops": receiver}, ["key one", "key two"], private, "r.md", timeout=0.5)
    return Dispatcher(pool, redis, "me", posting)


async def turn(one: Dispatcher) -> None:
    """A round of the leader, to its end."""
    await one.round()
    await one.rest()


async def due_again(pool: Pool, hours: float = 0.0) -> None:
    await pool.execute(
        "UPDATE evosaga.deliveries SET next_at = now(),"
        " created_at = created_at - make_interval(secs => $1)",
        hours * 3600,
    )


async def over(pool: Pool) -> None:
    """The alert is over."""
    await pool.execute("UPDATE evosaga.alerts SET seen_at = now() - interval '1 min'")
    await resolve(pool, [], [GONE.code], settled=True)


async def test_a_message_is_signed_as_standard_webhooks_describe_it(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    one = dispatcher(pool, redis, stub)
    await observe(pool, [GONE])
    await turn(one)
    await turn(one)
    [message] = stub.received
    body = message.json
    assert body["type"] == "alert.firing"
    assert body["data"]["message"] == "none alive <here>"
    assert body["data"]["runbook"] == "r.md#workers"
    for key in keys_of("ops", one.posting.receivers["ops"], one.posting.secrets):
        assert message.verifies(told_secret(key)), "while a key is rotated both are good"
    assert not message.verifies(SECRET)


async def test_a_secret_of_its_own_signs_alone(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    await observe(pool, [GONE])
    await turn(dispatcher(pool, redis, stub, secret=SecretStr(SECRET)))
    [message] = stub.received
    assert message.verifies(SECRET)
    assert " " not in message.headers["webhook-signature"]


async def test_a_receiver_that_was_down_is_told_first_that_and_then_that_it_is_over(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    stub.status = 503
    one = dispatcher(pool, redis, stub)
    await observe(pool, [GONE])
    await turn(one)
    await over(pool)
    await turn(one)
    assert stub.types() == ["alert.firing"], "it failed, and nothing overtakes it"
    stub.status = 200
    await due_again(pool)
    await turn(one)
    await turn(one)
    assert stub.types() == ["alert.firing", "alert.firing", "alert.resolved"]
    first, again, _ = stub.received
    assert first.headers["webhook-id"] == again.headers["webhook-id"]


async def test_what_waits_for_a_receiver_that_was_removed_is_given_up_and_said(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    one = dispatcher(pool, redis, stub)
    for receiver, age in (("removed", "2 h"), ("removed", "5 min"), ("ops", "2 h")):
        await outbox.queue(pool, receiver, f"{receiver} {age}", "alert.firing", {})
        aged = "UPDATE evosaga.deliveries SET created_at = now() - $1::text::interval, "
        aged += "next_at = now() + interval '1 h' WHERE message_id = $2"
        await pool.execute(aged, age, f"{receiver} {age}")
    [state] = await view.removed(pool, one.posting.receivers)
    assert (state.name, state.waiting, state.given_up) == ("removed", 2, 0)
    await turn(one)
    [state] = await view.removed(pool, one.posting.receivers)
    assert (state.waiting, state.given_up) == (1, 1), "a deploy may still be going on"
    [known] = await view.receivers(pool, one.posting.receivers)
    assert (known.name, known.waiting) == ("ops", 1)


@pytest.mark.parametrize(
    ("misbehaves", "said"),
    [
        ({"hangs": True}, "no answer within 0.5 s"),
        ({"status": 410}, "HTTP 410"),
        ({"status": 500}, "HTTP 500"),
        ({"status": 307, "headers": {"Location": "/elsewhere"}}, "redirects are not followed"),
        (
            {"status": 302, "headers": {"Location": "http://169.254.169.254/latest/meta-data"}},
            "redirects are not followed",
        ),
    ],
)
async def test_one_that_misbehaves_is_tried_for_a_day_and_then_given_up(
    pool: Pool, redis: Redis, stub: StubReceiver, misbehaves: Mapping[str, Any], said: str
) -> None:
    for name, value in misbehaves.items():
        setattr(stub, name, value)
    one = dispatcher(pool, redis, stub)
    await observe(pool, [GONE])
    for hours in (0, 1, 22.9):
        await due_again(pool, hours)
        await turn(one)
    [state] = await view.receivers(pool, one.posting.receivers)
    assert (state.waiting, state.given_up) == (1, 0)
    assert said in (state.error or "")
    await due_again(pool, 0.2)
    await turn(one)
    [state] = await view.receivers(pool, one.posting.receivers)
    assert (state.waiting, state.given_up) == (0, 1)
    assert len(stub.received) == 4
    await due_again(pool)
    await turn(one)
    assert len(stub.received) == 4
    assert stub.elsewhere == 0


async def test_pauses_grow_and_a_retry_after_is_obeyed(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    stub.status = 503
    one = dispatcher(pool, redis, stub)
    await observe(pool, [GONE])
    pauses = []
    left = "SELECT extract(epoch FROM next_at - now())::float8 FROM evosaga.deliveries"
    for hours in (0, 0, 0, 3):
        await due_again(pool, hours)
        await turn(one)
        pauses.append(await pool.fetchval(left))
    assert pauses == sorted(pauses)
    assert pauses[0] < 5
    stub.headers["Retry-After"] = "1800"
    await due_again(pool)
    await turn(one)
    assert 1700 < await pool.fetchval(left) <= 1800


async def test_a_private_address_is_refused_unless_it_is_allowed(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    await observe(pool, [GONE])
    one = dispatcher(pool, redis, stub, private=False)
    await turn(one)
    named = stub.url.replace("127.0.0.1", "localhost")
    answer = await sending.post(named, b"{}", {}, private=False)
    assert stub.received == []
    assert answer.error == sending.PRIVATE, "what a name leads to is looked at as well"
    [state] = await view.receivers(pool, one.posting.receivers)
    assert state.error == sending.PRIVATE
    assert (await sending.post(named, b"{}", {}, private=True)).ok


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not sending.public(address)


def test_addresses_that_are_public() -> None:
    assert sending.public("93.184.215.14")
    assert sending.public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


async def test_slack_is_told_in_its_own_words(pool: Pool, redis: Redis, stub: StubReceiver) -> None:
    await observe(pool, [GONE])
    await turn(dispatcher(pool, redis, stub, format="slack"))
    [message] = stub.received
    assert message.json["text"] == ":rotating_light: firing: none alive &lt;here&gt;"
    assert "start one" in message.json["attachments"][0]["text"]


async def test_a_message_that_can_not_be_made_counts_as_tried_and_holds_up_no_other(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    one = dispatcher(pool, redis, stub, format="slack")
    await outbox.queue(pool, "ops", "odd", "alert.odd", {})
    await observe(pool, [GONE])
    await turn(one)
    assert len(stub.received) == 1
    [state] = await view.receivers(pool, one.posting.receivers)
    assert (state.waiting, state.error) == (1, "sending it raised KeyError")


async def test_pagerduty_is_told_to_trigger_and_to_resolve_the_same_incident(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    one = dispatcher(pool, redis, stub, format="pagerduty", routing_key=SecretStr("R1"))
    await observe(pool, [GONE])
    await turn(one)
    await over(pool)
    await turn(one)
    first, second = (message.json for message in stub.received)
    assert (first["event_action"], second["event_action"]) == ("trigger", "resolve")
    assert first["dedup_key"] == second["dedup_key"]
    assert first["routing_key"] == "R1"
    assert first["payload"]["severity"] == "critical"


async def test_events_that_a_receiver_wants_are_sent_as_cloudevents(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    one = dispatcher(pool, redis, stub, alerts=False, events=("saga.*", "integration.connected"))

    async def tell(id_: str, type_: str) -> None:
        event = {"specversion": "1.0", "id": id_, "type": type_, "data": {"text": "\0 and é"}}
        await redis.xadd(streams.EVENTS, {"data": json.dumps(event)})

    await tell("old:0", "saga.failed")
    await turn(one)
    for id_, type_ in (("a:0", "saga.started"), ("a:1", "step.started"), ("a:2", "saga.failed")):
        await tell(id_, type_)
    await redis.xadd(streams.EVENTS, {"data": "not json"})
    await redis.xadd(streams.EVENTS, {"else": "1"})
    await tell("n:1", "integration.connected")
    await tell("a:2", "saga.failed")
    await turn(one)
    await turn(one)
    assert sorted(one.json["id"] for one in stub.received) == ["a:0", "a:2", "n:1"]
    assert stub.received[0].headers["content-type"] == "application/cloudevents+json"
    assert stub.received[0].json["data"] == {"text": "\0 and é"}


async def test_a_receiver_that_takes_nothing_fills_no_table(
    pool: Pool, redis: Redis, stub: StubReceiver
) -> None:
    stub.status = 500
    one = dispatcher(pool, redis, stub, alerts=False, events=("*",))
    await turn(one)
    pipeline = redis.pipeline(transaction=False)
    for number in range(2500):
        pipeline.xadd(streams.EVENTS, {"data": json.dumps({"id": f"a:{number}", "type": "x.y"})})
    await pipeline.execute()
    await pool.execute("UPDATE evosaga.deliveries SET next_at = now() + interval '1 h'")
    for _ in range(6):
        await one.round()
        await pool.execute("UPDATE evosaga.deliveries SET next_at = now() + interval '1 h'")
    await one.rest()
    assert await pool.fetchval("SELECT count(*) FROM evosaga.deliveries") == 1000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"ops": {"url": "ftp://x"}}', "ops: url must start with https://"),
        ('{"ops": {"url": "https://x", "format": "pagerduty"}}', "needs routing_key"),
        ('{"ops": {"url": "https://x", "format": "teams"}}', "ops: format"),
        ('{"ops": {"url": "https://x", "events": ["sa ga"]}}', "events are types"),
        ('{"ops": {"url": "https://x", "secret": "whsec_short"}}', "secret must be whsec_"),
        ('{"ops": {"url": "https://x", "colour": "red"}}', "and nothing else"),
        ('{"Ops!": {"url": "https://x"}}', "a receiver's name is"),
        ('{"alerts": {"url": "https://x"}}', "choose another name"),
        ("[1]", "must be a JSON object"),
        ("{", "is no JSON"),
    ],
)
def test_a_receiver_that_can_not_be_is_refused_with_one_sentence(value: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        read_receivers(value)
    assert not isinstance(refused.value, ValidationError)
    with pytest.raises(SettingsError, match="EVOSAGA_RECEIVERS: "):
        load_settings(_env_file=None, receivers=value)


def test_pagerduty_without_its_key_is_refused_at_start() -> None:
    with pytest.raises(SettingsError, match="EVOSAGA_ALERTS_ROUTING_KEY"):
        load_settings(_env_file=None, alerts_format="pagerduty")
