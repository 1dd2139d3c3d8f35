"""Bad input: each kind is refused with its reason code before it can do any harm.

A command is read from bytes that anybody may have written. What ``read_command`` lets through,
Postgres, Redis and every later reader can take.
"""

import json
from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import pytest
from hypothesis import example
from hypothesis import strategies as st

from evosaga.events.commands import DEEPEST, LARGEST, BadCommand, Command, read_command, saga_id_of
from evosaga.orchestrator.commands.accept import parse_request
from evosaga.sagas.registry import registry_of
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION
from tests.support.fuzzing import fuzzed

CATALOGUE = registry_of([CREATE_INTEGRATION, DELETE_INTEGRATION])
ORGANIZATION = "0197f3a0-0000-7000-8000-00000000000a"
CLINIC = "0197f3a0-0000-7000-8000-00000000000b"
CREATE = {"organization_id": ORGANIZATION, "clinic_id": CLINIC, "name": "Clínica Sol"}


def message(data: str = "{}", id_: str = '"a"', rest: str = "") -> bytes:
    """A command in which ``data`` and ``id_`` are JSON text, however odd."""
    return f'{{"id":{id_},"type":"t","data":{data}{rest}}}'.encode()


def refusal(raw: bytes) -> BadCommand:
    with pytest.raises(BadCommand) as refused:
        read_command(raw)
    assert refused.value.message
    assert len(refused.value.message) < 300
    refused.value.message.encode()  # it will be written down, so it must be plain text
    assert "\0" not in refused.value.message
    return refused.value


def nested(levels: int, innermost: str = "") -> str:
    return "[" * levels + innermost + "]" * levels


CORPUS: dict[str, list[tuple[str, bytes]]] = {
    "malformed_json": [
        ("nothing", b""),
        ("a blank", b" "),
        ("half an object", b'{"id":"a","type":'),
        ("single quotes", b"{'id':'a','type':'t','data':{}}"),
        ("a trailing comma", message('{"a":1,}')),
        ("two objects", message() + message()),
        ("text after it", message() + b"x"),
        ("a byte order mark", b"\xef\xbb\xbf" + message()),
        ("a raw newline in a text", message('{"a":"x\ny"}')),
        ("a raw NUL", message('{"a":"\0"}')),
        ("a NUL behind it", message() + b"\0"),
        ("a number with a leading zero", message('{"a":007}')),
        ("a hexadecimal number", message('{"a":0xff}')),
        ("a comment", b"// hello\n" + message()),
        ("YAML", b"id: a\ntype: t\ndata: {}\n"),
    ],
    "not_utf8": [
        ("Latin-1", message().replace(b'"a"', b'"\xe9"')),
        ("UTF-16", message().decode().encode("utf-16")),
        ("an overlong slash", message('{"a":"X"}').replace(b"X", b"\xc0\xaf")),
        ("a surrogate in UTF-8", message('{"a":"X"}').replace(b"X", b"\xed\xa0\x80")),
        ("a text cut in a character", message('{"a":"é"}')[:-4]),
        ("gzip", b"\x1f\x8b\x08\x00"),
        ("0xFF", b"\xff"),
    ],
    "wrong_shape": [
        ("null", b"null"),
        ("a number", b"17"),
        ("a text", b'"integration.create"'),
        ("a list", b"[" + message() + b"]"),
        ("an empty object", b"{}"),
        ("no id", b'{"type":"t","data":{}}'),
        ("no type", b'{"id":"a","data":{}}'),
        ("no data", b'{"id":"a","type":"t"}'),
        ("data is a list", message("[]")),
        ("data is null", message("null")),
        ("data is a text of JSON", message('"{}"')),
        ("the id is a number", message(id_="17")),
        ("the id is null", message(id_="null")),
        ("the id is an object", message(id_="{}")),
        ("the id is true", message(id_="true")),
        ("the id is empty", message(id_='""')),
        ("the id has 201 characters", message(id_=f'"{"a" * 201}"')),
        ("the type is a number", message(rest=',"type_":0').replace(b'"t"', b"7")),
        ("the type is empty", message().replace(b'"t"', b'""')),
        ("the correlation id is a number", message(rest=',"correlationid":7')),
        ("the causation id is empty", message(rest=',"causationid":""')),
        ("another CloudEvents version", message(rest=',"specversion":"0.3"')),
        ("a version that is a number", message(rest=',"specversion":1.0')),
    ],
    "oversized": [
        ("one byte too many", message().ljust(LARGEST + 1)),
        ("ten megabytes of nothing", b" " * 10_000_000),
        ("ten megabytes of data", message(f'{{"a":"{"a" * 10_000_000}"}}')),
        ("a hundred thousand levels", message(f'{{"a":{nested(100_000)}}}')),
        ("a million digits", message(f'{{"a":{"9" * 1_000_000}}}')),
    ],
    "too_deep": [
        ("as deep as its size allows", nested(LARGEST // 2).encode()),
        ("brackets that nobody closes", b"[" * LARGEST),
        ("objects in objects", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        ("one level too many", message(f'{{"a":{nested(DEEPEST - 1)}}}')),
        ("one level too many around a number", message(f'{{"a":{nested(DEEPEST - 1, "1")}}}')),
    ],
    "forbidden_character": [
        ("a NUL", message(r'{"a":"\u0000"}')),
        ("a NUL in a key", message(r'{"a\u0000b":1}')),
        ("a NUL in the id", message(id_=r'"a\u0000"')),
        ("a NUL in a list of lists", message(r'{"a":[[["\u0000"]]]}')),
        ("a high surrogate alone", message(r'{"a":"\ud83d"}')),
        ("a low surrogate alone", message(r'{"a":"\ude00"}')),
        ("a pair the wrong way round", message(r'{"a":"\ude00\ud83d"}')),
        ("a lone surrogate in a key", message(r'{"\ud800":1}')),
        ("a lone surrogate in a part nobody reads", message(rest=r',"source":"\udfff"')),
    ],
    "not_a_number": [
        ("NaN", message('{"a":NaN}')),
        ("Infinity", message('{"a":Infinity}')),
        ("-Infinity", message('{"a":[-Infinity]}')),
    ],
    "number_out_of_range": [
        ("1e999", message('{"a":1e999}')),
        ("-1e999", message('{"a":-1e999}')),
        ("400 digits", message(f'{{"a":{"9" * 400}}}')),
        ("5000 digits", message(f'{{"a":{"9" * 5000}}}')),
        ("2 to the 63rd", message(f'{{"a":{2**63}}}')),
        ("less than -2 to the 63rd", message(f'{{"a":{-(2**63) - 1}}}')),
    ],
    "duplicate_key": [
        ("the id twice", message(rest=',"id":"b"')),
        ("data twice", message(rest=',"data":{}')),
        ("a key of the data", message('{"a":1,"a":1}')),
        ("deep down", message('{"a":[{"b":{"c":0,"c":1}}]}')),
        ("spelled in two ways", message(r'{"a":1,"\u0061":2}')),
        ("with a long name", message(f'{{"{"k" * 9000}":1,"{"k" * 9000}":2}}')),
        ("with a NUL in its name", message(r'{"\u0000":1,"\u0000":2}')),
        ("with a lone surrogate in its name", message(r'{"\ud800":1,"\ud800":2}')),
    ],
}


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        pytest.param(code, raw, id=f"{code}: {name}")
        for code, cases in CORPUS.items()
        for name, raw in cases
    ],
)
def test_bad_input_is_refused_with_its_reason(code: str, raw: bytes) -> None:
    assert refusal(raw).code == code


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(message(f'{{"a":{nested(DEEPEST - 2)}}}'), id="just deep enough"),
        pytest.param(message(f'{{"a":{nested(DEEPEST - 2, "1")}}}'), id="a number down there"),
        pytest.param(message().ljust(LARGEST), id="just small enough"),
        pytest.param(message(id_=f'"{"é" * 200}"'), id="an id of 200 characters"),
        pytest.param(message(f'{{"a":[{2**63 - 1},{-(2**63)},-0]}}'), id="64 bits"),
        pytest.param(message('{"a":1.5e308}'), id="a large double"),
        pytest.param(message(r'{"a":"\ud83d\ude00"}'), id="a surrogate pair"),
        pytest.param(message('{"a":"😀\\n\\u200b"}'), id="unicode"),
        pytest.param(message(rest=',"specversion":"1.0","source":"/x","time":null'), id="extras"),
    ],
)
def test_what_is_unusual_but_sound_is_accepted(raw: bytes) -> None:
    assert read_command(raw).type == "t"


def test_every_part_of_a_cloudevent_ends_where_it_belongs() -> None:
    raw = message('{"a":1}', rest=',"correlationid":"c","causationid":"d"')
    assert read_command(raw) == Command("a", "t", {"a": 1}, "c", "d")


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    for cases in CORPUS.values():
        for _, raw in cases:
            assert len(refusal(raw).message) < 200


# --- fuzz --------------------------------------------------------------------------------------


def judge(raw: bytes) -> None:
    """Whatever the bytes: a sound command, or a reason."""
    try:
        command = read_command(raw)
    except BadCommand:
        assert refusal(raw).code in CORPUS
        return
    stored = json.dumps(command.data, ensure_ascii=False, allow_nan=False)
    stored.encode()  # no lone surrogate
    assert json.loads(stored) == command.data
    everything = [command.id, command.type, command.correlation_id, command.data]
    assert not any("\0" in text for text in texts_in(everything))
    assert 1 <= len(command.id.encode()) <= 800
    assert isinstance(command.saga_id, UUID)
    assert len(command.hash) == 64


def texts_in(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from texts_in(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from texts_in(item)


@fuzzed(st.binary(max_size=300))
@example(b"\xef\xbb\xbf{}")
def test_arbitrary_bytes_are_a_command_or_a_bad_command(raw: bytes) -> None:
    judge(raw)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(codec=None, exclude_categories=()), max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@fuzzed(json_values, json_values, json_values)
def test_arbitrary_json_is_a_command_or_a_bad_command(id_: Any, type_: Any, data: Any) -> None:
    judge(json.dumps({"id": id_, "type": type_, "data": data}).encode())
    judge(json.dumps({"id": "a", "type": "t", "data": {"x": data}}).encode())


@fuzzed(st.data())
def test_a_good_command_with_a_few_bytes_changed_is_a_command_or_a_bad_command(
    data: st.DataObject,
) -> None:
    raw = bytearray(json.dumps({"id": "a", "type": "integration.create", "data": CREATE}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    judge(bytes(raw))


# --- the id and the hash -----------------------------------------------------------------------


def test_an_id_that_is_a_uuid_is_the_sagas_id_however_it_is_written() -> None:
    text = "0197F3A0-1234-7000-8000-0000000000AB"
    assert saga_id_of(text) == saga_id_of(text.lower()) == UUID(text)


@pytest.mark.parametrize(
    "text",
    [
        "order 17",
        "0197f3a0123470008000000000000000",
        "{0197f3a0-1234-7000-8000-0000000000ab}",
        "urn:uuid:0197f3a0-1234-7000-8000-0000000000ab",
        "0197f3a0-1234-7000-8000-0000000000ab\n",
        "é" * 200,
    ],
)
def test_any_other_id_gives_a_saga_id_of_its_own(text: str) -> None:
    assert saga_id_of(text) == uuid5(NAMESPACE_URL, text)


def test_the_hash_is_the_same_for_the_same_body_however_it_is_written() -> None:
    plain = read_command(message('{"b":[1,"é"],"a":{"x":1,"y":2}}'))
    other = read_command(
        b'{ "data" : {"a":{"y":2,"x":1},\n "b":[1,"\\u00e9"]}, "type":"t", "id":"another",'
        b' "correlationid":"c", "time":"now" }'
    )
    assert plain.hash == other.hash


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        ("u", {"a": 1}),
        ("t", {"a": 2}),
        ("t", {"a": "1"}),
        ("t", {"a": [1]}),
        ("t", {"a": True}),
        ("t", {"a": None}),
        ("t", {"A": 1}),
        ("t", {"a": 1, "b": None}),
        ("t", {}),
    ],
)
def test_the_hash_differs_when_the_body_does(type_: str, data: dict[str, Any]) -> None:
    assert Command("x", type_, data).hash != Command("x", "t", {"a": 1}).hash


def test_the_hash_minds_the_order_of_a_list() -> None:
    assert Command("x", "t", {"a": [1, 2]}).hash != Command("x", "t", {"a": [2, 1]}).hash


# --- what the saga asks of the data ------------------------------------------------------------


def misunderstood(type_: str, data: dict[str, Any]) -> BadCommand:
    with pytest.raises(BadCommand) as refused:
        parse_request(CATALOGUE, Command("x", type_, data))
    return refused.value


def test_a_good_command_is_understood() -> None:
    request = parse_request(CATALOGUE, Command("x", "integration.create", CREATE))
    assert request.saga is CREATE_INTEGRATION
    assert request.input.organization_id == UUID(ORGANIZATION)


def test_an_unknown_type_is_refused_and_the_known_ones_are_named() -> None:
    bad = misunderstood("integration.frobnicate", {})
    assert bad.code == "unknown_type"
    known = "integration.create, integration.delete, saga.cancel, saga.replay"
    assert bad.message.endswith(f"known: {known}")


SECRET = "hunter2-do-not-repeat-me"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("organization_id", SECRET),
        ("organization_id", None),
        ("organization_id", 17),
        ("clinic_id", {"a": SECRET}),
        ("name", ""),
        ("name", "   "),
        ("name", SECRET * 10),
        ("name", 17),
        ("name", [SECRET]),
        ("channel", SECRET),
        ("channel", "WHATSAPP-BUSINESS"),
        ("number", f"+{SECRET}"),
        ("number", 5511999999999),
        ("number", "12345"),
        ("instance_name", f"..%2f{SECRET}"),
        ("instance_name", "create"),
        ("webhook_url", f"ftp://example.org/{SECRET}"),
        ("webhook_url", f"https://user:{SECRET}@example.org/"),
        ("webhook_url", f"https://example.org/{'x' * 500}{SECRET}"),
        ("webhook_url", f"https://[{SECRET}]/"),
        ("webhook_url", f"https://user:{SECRET}@\u2100.example.org/"),
        ("webhook_url", f"https:///{SECRET}"),
        ("frobnicate", SECRET),
    ],
)
def test_invalid_data_names_the_field_and_never_repeats_the_value(field: str, value: Any) -> None:
    bad = misunderstood("integration.create", CREATE | {field: value})
    assert bad.code == "invalid_data"
    assert field in bad.message
    assert SECRET not in bad.message
    assert len(bad.message) <= 500


@pytest.mark.parametrize("field", ["organization_id", "clinic_id", "name"])
def test_a_field_that_is_missing_is_named(field: str) -> None:
    bad = misunderstood("integration.create", {k: v for k, v in CREATE.items() if k != field})
    assert bad.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("number", "+55 11 99999", "number: must be 6 to 20 digits, without + and spaces"),
        ("instance_name", "Clínica", "instance_name: must be 3 to 63 characters of a-z, 0-9 and -"),
        ("server", "BERLIN", "server: must be 1 to 31 characters of a-z, 0-9 and -"),
    ],
)
def test_what_a_field_must_look_like_is_said_in_words_and_not_as_a_pattern(
    field: str, value: str, said: str
) -> None:
    with pytest.raises(BadCommand) as refused:
        parse_request(CATALOGUE, Command("x", "integration.create", CREATE | {field: value}))
    assert refused.value.message.startswith(said)
    assert "\\" not in refused.value.message


def test_every_wrong_field_is_named_at_once() -> None:
    bad = misunderstood("integration.create", {"organization_id": "x", "name": ""})
    assert all(f"{field}: " in bad.message for field in ("organization_id", "clinic_id", "name"))


@fuzzed(
    st.dictionaries(
        st.sampled_from(
            [
                *("organization_id", "clinic_id", "name", "instance_name", "channel"),
                *("number", "webhook_url", "stranger"),
            ]
        ),
        st.none()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8", exclude_characters="\0"))
        | st.lists(st.integers(0, 9), max_size=3),
    ),
)
def test_whatever_the_data_it_is_understood_or_a_bad_command(data: dict[str, Any]) -> None:
    for type_ in CATALOGUE.by_command:
        try:
            parse_request(CATALOGUE, Command("x", type_, CREATE | data))
        except BadCommand:
            assert misunderstood(type_, CREATE | data).code == "invalid_data"
