"""What can't be understood ends in ``evosaga:commands:dead``: never lost, never circling."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from faststream.redis import RedisBroker
from redis.asyncio import Redis

import evosaga.orchestrator.commands.accept
import evosaga.orchestrator.commands.consumer
import evosaga.orchestrator.commands.handler
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.accept import Request
from evosaga.orchestrator.config.settings import Settings
from tests.conftest import Servers
from tests.support.driving import create, dead_letters, nothing_pending, outcome, publish
from tests.support.waiting import eventually
from tests.support.workers import Worker


def command(**changes: Any) -> bytes:
    return json.dumps(create() | changes).encode()


def with_data(**changes: Any) -> bytes:
    return json.dumps(create(**changes)).encode()


def raw(text: str) -> bytes:
    """A command whose ``name`` is this JSON text."""
    return json.dumps(create(name="@")).replace('"@"', text).encode()


CORPUS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "malformed_json"),
    "broken": (b'{"id":', "malformed_json"),
    "trailing": (command() + b"x", "malformed_json"),
    "not utf-8": (b'{"id": "\xff"}', "not_utf8"),
    "utf-16": (command().decode().encode("utf-16"), "not_utf8"),
    "a list": (b"[]", "wrong_shape"),
    "null": (b"null", "wrong_shape"),
    "a number": (b"3", "wrong_shape"),
    "no id": (b'{"type": "integration.create", "data": {}}', "wrong_shape"),
    "no type": (b'{"id": "x", "data": {}}', "wrong_shape"),
    "no data": (b'{"id": "x", "type": "integration.create"}', "wrong_shape"),
    "id of another type": (command(id=7), "wrong_shape"),
    "empty id": (command(id=""), "wrong_shape"),
    "long id": (command(id="x" * 201), "wrong_shape"),
    "newline in the id": (command(id="a\nb"), "forbidden_character"),
    "escape in the id": (command(id="\x1b[31mred"), "forbidden_character"),
    "next line in the id": (command(id="a\x85b"), "forbidden_character"),
    "line separator in the id": (command(id="a\u2028b"), "forbidden_character"),
    "tab in the type": (command(type="integration.create\t"), "forbidden_character"),
    "newline in the correlationid": (command(correlationid="a\r\nb"), "forbidden_character"),
    "escape in the causationid": (command(causationid="\x9b31m"), "forbidden_character"),
    "escape in a reason": (
        command(type="saga.cancel", data={"saga_id": str(uuid.uuid4()), "reason": "\x1b[2J"}),
        "invalid_data",
    ),
    "data a list": (command(data=[1]), "wrong_shape"),
    "data a text": (command(data="{}"), "wrong_shape"),
    "another specversion": (command(specversion="0.3"), "wrong_shape"),
    "null correlationid": (command(correlationid=None), "wrong_shape"),
    "unknown type": (command(type="integration.explode"), "unknown_type"),
    "type in capitals": (command(type="Integration.Create"), "unknown_type"),
    "unknown field": (with_data(proxyHost="evil"), "invalid_data"),
    "organization no uuid": (with_data(organization_id="1"), "invalid_data"),
    "organization missing": (command(data={"name": "x"}), "invalid_data"),
    "name of another type": (with_data(name=7), "invalid_data"),
    "name empty": (with_data(name="   "), "invalid_data"),
    "name long": (with_data(name="x" * 121), "invalid_data"),
    "instance path": (with_data(instance_name="../create"), "invalid_data"),
    "instance query": (with_data(instance_name="x?instanceName=victim"), "invalid_data"),
    "instance newline": (with_data(instance_name="abc\n"), "invalid_data"),
    "instance reserved": (with_data(instance_name="constructor"), "invalid_data"),
    "instance long": (with_data(instance_name="x" * 64), "invalid_data"),
    "channel": (with_data(channel="SMS"), "invalid_data"),
    "number": (with_data(number="+55 11"), "invalid_data"),
    "webhook scheme": (with_data(webhook_url="file:///etc/passwd"), "invalid_data"),
    "webhook user": (with_data(webhook_url="https://a:b@hooks.example"), "invalid_data"),
    "webhook port": (with_data(webhook_url="https://hooks.example:99999/"), "invalid_data"),
    "webhook newline": (with_data(webhook_url="https://hooks.example/\n"), "invalid_data"),
    "oversized": (with_data(name="x" * 70_000), "oversized"),
    "ten megabytes": (b'"' + b"x" * 10_000_000 + b'"', "oversized"),
    "deep": (raw("[" * 40 + "]" * 40), "too_deep"),
    "very deep": (b"[" * 30_000 + b"]" * 30_000, "too_deep"),
    "deep objects": (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "too_deep"),
    "NUL": (raw('"a\\u0000b"'), "forbidden_character"),
    "NUL in a key": (raw('{"a\\u0000b": 1}'), "forbidden_character"),
    "lone surrogate": (raw('"\\ud800"'), "forbidden_character"),
    "NaN": (raw("NaN"), "not_a_number"),
    "Infinity": (raw("-Infinity"), "not_a_number"),
    "duplicate key": (b'{"id": "a", "id": "b", "type": "t", "data": {}}', "duplicate_key"),
    "duplicate inner key": (raw('{"a": 1, "a": 1}'), "duplicate_key"),
    "400 digits": (raw("9" * 400), "number_out_of_range"),
    "huge exponent": (raw("1e999"), "number_out_of_range"),
    "replay without saga": (command(type="saga.replay", data={}), "invalid_data"),
    "replay of nothing": (
        command(type="saga.replay", data={"saga_id": str(uuid.uuid4())}),
        "unknown_saga",
    ),
}


async def add(redis: Redis, fields: dict[Any, Any]) -> bytes:
    """A plain XADD of whatever fields; its id."""
    id_: Any = await redis.xadd("evosaga:commands", fields)
    return bytes(id_)


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings) as worker:
        yield worker


@pytest.mark.fault("j2", "j5", "j6")
async def test_every_bad_message_is_a_dead_letter_and_holds_nobody_up(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    """All at once, so that they come in batches, with a good command after each."""
    good, ids = [], {}
    for name, (data, _) in CORPUS.items():
        ids[name] = str(await add(redis, {"data": data}), "ascii")
        good.append(await publish(redis, create()))
    async with running_worker(settings):
        for id_ in good:
            assert (await outcome(pool, id_, 30)).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    letters = {letter["message_id"]: letter for letter in await dead_letters(redis)}
    assert {name for name, id_ in ids.items() if id_ not in letters} == set()
    assert len(letters) == await redis.xlen(streams.DEAD_COMMANDS)
    for name, (data, code) in CORPUS.items():
        letter = letters[ids[name]]
        assert (name, letter["code"]) == (name, code)
        assert letter["data"] == data, name
        assert letter["deliveries"] == "1"
        assert 5 < len(letter["message"]) <= 600
    assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == len(CORPUS)


@pytest.mark.fault("a10")
async def test_the_same_id_with_another_body_is_dead_lettered_and_the_first_unharmed(
    worker: Worker, pool: Pool, redis: Redis
) -> None:
    first = create()
    second = first | {"data": first["data"] | {"name": "Another"}}
    for body in (first, second, first):
        await publish(redis, body)
    assert (await outcome(pool, first["id"])).status == "completed"
    await eventually(lambda: nothing_pending(redis))
    [letter] = await dead_letters(redis)
    assert letter["code"] == "conflicting_duplicate"
    assert json.loads(letter["data"]) == second


@pytest.mark.fault("j7")
async def test_messages_with_only_foreign_fields_and_v5_reply_to(
    worker: Worker, pool: Pool, redis: Redis
) -> None:
    await redis.xadd(streams.COMMANDS, {"n": "3", "reply_to": "victim"})
    await redis.xadd(streams.COMMANDS, {b"\xff": b"\x00"})
    command = create()
    async with redis.pubsub() as victim:
        await victim.subscribe("victim")
        fields = {"data": json.dumps(command), "headers": '{"reply_to": "victim"}', "x": "y"}
        await add(redis, fields)
        assert (await outcome(pool, command["id"])).status == "completed"
        heard = [await victim.get_message(timeout=0.05) for _ in range(3)]
    assert [m["type"] for m in heard if m] == ["subscribe"]
    await eventually(lambda: nothing_pending(redis))
    letters = await dead_letters(redis)
    assert [(letter["code"], letter["data"]) for letter in letters] == [("no_data_field", b"")] * 2
    assert (letters[0]["field:n"], letters[0]["field:reply_to"]) == (b"3", b"victim")
    assert letters[1]["field:\\xff"] == b"\x00"


async def test_what_faststreams_own_publisher_writes_is_accepted(
    worker: Worker, servers: Servers, pool: Pool, redis: Redis
) -> None:
    """Today's binary envelope, and the JSON envelope of the releases before."""
    today, before = create(), create()
    async with RedisBroker(servers.redis) as broker:
        await broker.publish(today, stream=streams.COMMANDS, reply_to="victim")
    envelope = {"data": json.dumps(before), "headers": {"correlation_id": "c", "reply_to": "v"}}
    await redis.xadd(streams.COMMANDS, {"__data__": json.dumps(envelope)})
    for command in (today, before):
        assert (await outcome(pool, command["id"])).status == "completed"
    assert await dead_letters(redis) == []


async def test_a_redis_cli_xadd_is_enough(worker: Worker, pool: Pool, redis: Redis) -> None:
    """Pretty-printed, with more CloudEvents attributes than we know, and a byte order mark off."""
    command = create() | {"specversion": "1.0", "source": "/shop", "time": "now", "extra": [1]}
    text = json.dumps(command, indent=4, ensure_ascii=False)
    await add(redis, {"data": text})
    assert (await outcome(pool, command["id"])).status == "completed"


@pytest.mark.fault("j3")
async def test_a_message_that_makes_us_stumble_is_dead_after_three_deliveries(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own bug on one message: its batch goes through, and it does not circle for ever."""
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.3)
    poison, real = create(name="poison"), evosaga.orchestrator.commands.accept.accept

    async def stumble(pool: Any, services: Any, worker: str, requests: list[Request]) -> Any:
        if any(request.input.name == "poison" for request in requests):
            raise RuntimeError("a bug")
        return await real(pool, services, worker, requests)

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "accept", stumble)
    neighbours = [create() for _ in range(3)]
    for body in (neighbours[0], poison, *neighbours[1:]):
        await publish(redis, body)
    async with running_worker(settings):
        for body in neighbours:
            assert (await outcome(pool, body["id"])).status == "completed"
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        await eventually(lambda: nothing_pending(redis))
    [letter] = await dead_letters(redis)
    assert (letter["code"], letter["deliveries"]) == ("not_accepted", "3")
    assert json.loads(letter["data"]) == poison


@pytest.mark.fault("b15")
async def test_a_cancel_of_a_saga_whose_history_nobody_can_read_holds_nobody_up(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event of a newer release, say: a dead letter in the end, and its neighbours go on."""
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.3)
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_LONG_PATIENCE", 4)
    saga, neighbour = uuid.uuid4(), create()
    await pool.execute(
        "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, "
        "command_hash, correlation_id, next_sequence) "
        "VALUES ($1, 'create-integration', 1, 'failed', 'k', 'c', 'h', 'c', 1)",
        saga,
    )
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "VALUES ($1, 0, 'saga.teleported', '{}', 'c')",
        saga,
    )
    cancel = {"id": "cancel", "type": "saga.cancel", "data": {"saga_id": str(saga)}}
    await publish(redis, cancel)
    await publish(redis, neighbour)
    async with running_worker(settings):
        assert (await outcome(pool, neighbour["id"])).status == "completed"
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        await eventually(lambda: nothing_pending(redis))
    [letter] = await dead_letters(redis)
    assert (letter["code"], json.loads(letter["data"])) == ("not_accepted", cancel)
