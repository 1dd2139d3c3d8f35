"""No secret has a place to leak to, and no name reaches further than it should."""

import json
import string
import uuid
from typing import get_args
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID

import httpx
import pytest
import yarl
from hypothesis import example
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from evosaga.events.model import (
    SagaEvent,
    SagaRejected,
    SagaStarted,
    data_json,
    event_from,
    public_data,
)
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from evosaga.sagas.whatsapp.delete_integration import DeleteIntegration
from evosaga.sagas.whatsapp.ownership import KeyRing, UnknownKey, fingerprint
from evosaga.sagas.whatsapp.types import InstanceName, PhoneNumber, WebhookUrl, unaddressable
from tests.support.fuzzing import fuzzed
from tests.support.given_when_then import begun, step, undo

OLD, NEW = "an-old-secret-of-thirty-two-bytes-or-more", "a-new-secret-of-thirty-two-bytes-or-more"
ONE, TWO = UUID(int=1), UUID(int=2)


class TestTheKeyRing:
    def test_gives_each_saga_purpose_and_key_a_token_of_its_own(self) -> None:
        ring = KeyRing([NEW, OLD])
        old = KeyRing([OLD]).current
        tokens = {
            make(saga_id, key_id)
            for make in (ring.instance_token, ring.webhook_token)
            for saga_id in (ONE, TWO)
            for key_id in (ring.current, old)
        }
        assert len(tokens) == 8
        assert all(len(token) == 64 and set(token) <= set(string.hexdigits) for token in tokens)

    def test_finds_the_same_token_again_after_a_restart(self) -> None:
        first, again = KeyRing([OLD]), KeyRing([OLD])
        assert first.instance_token(ONE, first.current) == again.instance_token(ONE, again.current)

    def test_uses_the_first_key_for_what_is_new_and_still_knows_the_others(self) -> None:
        before, after = KeyRing([OLD]), KeyRing([NEW, OLD])
        made = before.instance_token(ONE, before.current)
        assert after.instance_token(ONE, before.current) == made
        assert after.current != before.current
        assert after.current == KeyRing([NEW]).current

    def test_says_what_to_do_when_a_key_was_taken_away_too_early(self) -> None:
        gone = KeyRing([OLD]).current
        with pytest.raises(UnknownKey, match="put it back behind the new one") as refused:
            KeyRing([NEW]).webhook_token(ONE, gone)
        assert "EVOSAGA_SECRET_KEY" in str(refused.value)
        assert gone in str(refused.value)
        assert OLD not in str(refused.value)

    @pytest.mark.parametrize("secrets", [[], [""], ["short"], [OLD, "short"], ["é" * 15]])
    def test_refuses_a_key_that_could_be_guessed(self, secrets: list[str]) -> None:
        with pytest.raises(ValueError, match="at least 32 bytes") as refused:
            KeyRing(secrets)
        assert "short" not in str(refused.value)

    def test_counts_bytes_not_characters(self) -> None:
        assert KeyRing(["é" * 16]).current

    def test_names_a_key_without_giving_it_away(self) -> None:
        ring = KeyRing([OLD])
        assert len(ring.current) == 8
        assert ring.current not in OLD
        assert OLD not in repr(ring)
        assert not ring.instance_token(ONE, ring.current).startswith(ring.current)

    def test_a_fingerprint_is_short_and_tells_tokens_apart(self) -> None:
        ring = KeyRing([OLD])
        one, two = (ring.instance_token(saga_id, ring.current) for saga_id in (ONE, TWO))
        assert fingerprint(one) != fingerprint(two)
        assert len(fingerprint(one)) == 16
        assert fingerprint(one) not in one


# --- names -------------------------------------------------------------------------------------

NAMES: TypeAdapter[str] = TypeAdapter(InstanceName)
PHONES: TypeAdapter[str] = TypeAdapter(PhoneNumber)
URLS: TypeAdapter[str] = TypeAdapter(WebhookUrl)

ALLOWED = set(string.ascii_lowercase + string.digits + "-")
TRICKS = [
    "..",
    "../..",
    "a/../b",
    "%2e%2e",
    "%2e%2e%2fx",
    "abc?instanceName=victim",
    "abc#x",
    "abc;x",
    "abc&x=y",
    "abc\0",
    "abc\n",
    "\nabc",
    "abc\r\nDEL x",
    "abc def",
    " abc",
    "abc ",
    "abc\t",
    "Abc",
    "ábc",
    "аbс",  # Cyrillic letters that look like Latin ones
    "abc\u200b",
    "１２３",
    "abc.def",
    "abc_def",
    "__proto__",
    "abc*",
    "abc'--",
    "$(rm)",
    "-abc",
    "ab",
    "",
    "a" * 64,
    "a" * 10_000,
    "constructor",
    "create",
    "fetchinstances",
    "undefined",
    "null",
]


@pytest.mark.parametrize("name", TRICKS, ids=lambda name: ascii(name)[:40])
def test_a_name_that_means_something_else_somewhere_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        NAMES.validate_python(name)


def test_an_existing_name_is_refused_only_where_no_request_can_mean_it() -> None:
    for name in TRICKS:
        try:
            passed = DeleteIntegration.model_validate_json(json.dumps({"instance_name": name}))
        except ValidationError:
            told = unaddressable(name)
            assert told, name
            continue
        assert passed.instance_name == name
        assert_addressable(name)
    refused = {name for name in TRICKS if unaddressable(name)}
    assert {"..", "../..", "", "a" * 10_000, "constructor", "__proto__", "abc\0"} <= refused
    assert not {"Abc", "abc.def", "abc_def", " abc", "ábc", "%2e%2e", "-abc", "ab"} & refused


def assert_addressable(name: str) -> None:
    """It stays one segment of the path, and what is decoded again is the name."""
    part = quote(name, safe="")
    url = httpx.URL(f"http://evolution.example/instance/delete/{part}")
    sent = yarl.URL(str(url)).raw_path
    assert url.raw_path == f"/instance/delete/{part}".encode()
    assert sent.count("/") == 3
    assert unquote(sent.rpartition("/")[2]) == name


@fuzzed(st.text(max_size=70) | st.text("ab.-%/2e?#\\+ ~é\0\n", max_size=12), few=50, many=500)
@example("~")
@example("...")
def test_whatever_existing_name_passes_is_the_same_at_the_other_end(name: str) -> None:
    if unaddressable(name) is None:
        assert_addressable(name)


@pytest.mark.parametrize("name", [None, 17, 1.5, True, ["abc"], {"abc": 1}, b"abc\xff"])
def test_a_name_is_a_text(name: object) -> None:
    with pytest.raises(ValidationError):
        NAMES.validate_python(name)


@pytest.mark.parametrize("name", ["abc", "a-b", "0-0", "creates", "a" * 63, "nullable"])
def test_an_ordinary_name_is_taken_as_it_is(name: str) -> None:
    assert NAMES.validate_python(name) == name


@fuzzed(
    st.text(max_size=70)
    | st.text("abz019-", max_size=70)
    | st.text("ab.-%/2e?#\0\n", max_size=12)
    | st.from_regex(r"\A[a-z0-9][a-z0-9-]{2,62}", fullmatch=False),
    few=50,
    many=500,
)
@example("abc")
def test_whatever_name_passes_is_the_same_in_a_url_a_key_and_a_pattern(name: str) -> None:
    try:
        passed = NAMES.validate_python(name)
    except ValidationError:
        return
    assert passed == name
    assert set(name) <= ALLOWED
    assert 3 <= len(name) <= 63
    assert quote(name, safe="") == name
    path = httpx.URL("http://evolution.example").join(f"/instance/delete/{name}").raw_path
    assert path == f"/instance/delete/{name}".encode()


@pytest.mark.parametrize(
    "number",
    ["", "12345", "1" * 21, "+5511999999999", "5511 99999", "55?x=1", "１２３４５６", "123456\n"],
)
def test_a_phone_number_is_digits_and_nothing_that_changes_a_url(number: str) -> None:
    with pytest.raises(ValidationError):
        PHONES.validate_python(number)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org",
        "ftp://example.org",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://",
        "http:///x",
        "http://user@example.org",
        "http://user:password@example.org",
        "http://:password@example.org",
        "http://allowed.example\\@evil.example",
        "http://[::1",
    ],
)
def test_a_webhook_url_names_a_host_and_no_user(url: str) -> None:
    with pytest.raises(ValidationError):
        URLS.validate_python(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://exa\nmple.org/",
        "http://example.org/\r\nX: y",
        "http://exa\tmple.org/",
        "\x00http://a/",
    ],
    ids=ascii,
)
def test_a_webhook_url_that_readers_would_read_differently_is_refused(url: str) -> None:
    """Python quietly drops tabs and newlines from a URL before it looks at the host."""
    with pytest.raises(ValidationError):
        URLS.validate_python(url)


def test_a_webhook_url_is_passed_on_as_it_was_written() -> None:
    url = "https://hooks.example.org:8443/in?tenant=7#x"
    assert URLS.validate_python(url) == url
    assert urlsplit(url).hostname == "hooks.example.org"


# --- what an event may say ---------------------------------------------------------------------

ABOUT = {"saga", "version", "command", "command_id", "command_hash", "business_key", "input"}
WHOSE = {"organization_id", "instance_name"}
WHY = {"code", "message"}
ATTEMPT = {"step", "attempt"}
CLAIM = ATTEMPT | {"worker", "lease_seconds"}

FIELDS: dict[str, set[str]] = {
    "saga.started": ABOUT | WHOSE | {"facts", "deadline_seconds", "behind", "follow_up"},
    "saga.rejected": ABOUT | WHOSE | WHY | {"existing_instance"},
    "step.started": CLAIM,
    "step.succeeded": ATTEMPT | {"result", "follow_up"},
    "step.failed": ATTEMPT | WHY | {"outcome", "in_doubt", "retry_after_seconds", "lost"},
    "compensation.began": WHY | {"because", "step", "steps"},
    "compensation.started": CLAIM,
    "compensation.succeeded": ATTEMPT | {"result", "follow_up"},
    "compensation.failed": ATTEMPT | WHY | {"outcome", "retry_after_seconds", "lost"},
    "saga.completed": set(),
    "saga.compensated": WHY,
    "saga.failed": WHY | {"step", "direction"},
    "saga.resumed": {"by", "reason", "redo"},
    "saga.cancel_requested": {"by", "reason"},
}
"""Every field of every event. Adding one means deciding that it may be public for ever."""

KINDS: tuple[type[BaseModel], ...] = get_args(SagaEvent)
OPEN_ENDED = {"input", "facts", "result"}
"""Fields that hold whatever a saga puts there; steps record no secrets, see their own tests."""


def type_of(kind: type[BaseModel]) -> str:
    name: str = kind.model_fields["type"].default
    return name


def test_the_types_of_events_are_those_that_were_promised() -> None:
    assert {type_of(kind) for kind in KINDS} == set(FIELDS)


@pytest.mark.parametrize("kind", KINDS, ids=type_of)
def test_an_event_has_no_field_that_is_not_on_the_list(kind: type[BaseModel]) -> None:
    assert set(kind.model_fields) - {"type"} == FIELDS[type_of(kind)]


@pytest.mark.parametrize("kind", KINDS, ids=type_of)
def test_only_three_fields_take_whatever_they_are_given(kind: type[BaseModel]) -> None:
    loose = {
        name
        for name, about in kind.model_fields.items()
        if "Any" in str(about.annotation) or "dict" in str(about.annotation)
    }
    assert loose <= OPEN_ENDED


@pytest.mark.parametrize("field", ["token", "apikey", "api_key", "qr", "base64", "pairing_code"])
def test_an_event_takes_no_secret_by_another_name(field: str) -> None:
    for event in (begun(), *step.unknown("hotel"), *undo.succeeded("hotel")):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            type(event).model_validate(event.model_dump() | {field: "secret"})


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        begun().version = 2  # type: ignore[misc]


def test_personal_data_stays_in_postgres() -> None:
    only_a_start = {"facts", "deadline_seconds", "behind", "follow_up"}
    about = begun().model_dump(exclude={"type", "input"} | only_a_start)
    person = {"name": "Clínica Sol", "number": "5511999999999"}
    started = SagaStarted(**about, input=person, facts={"clinic": "Sol"})
    rejected = SagaRejected(**about, input=person, code="c", message="m")
    for event in (started, rejected):
        said = json.dumps(public_data(event), ensure_ascii=False)
        assert "Sol" not in said
        assert "5511" not in said
        assert "Sol" in data_json(event)


@pytest.mark.parametrize("kind", KINDS, ids=type_of)
def test_what_is_private_is_what_a_person_typed_and_what_was_found_about_them(
    kind: type[BaseModel],
) -> None:
    private: frozenset[str] = getattr(kind, "PRIVATE")  # noqa: B009  # not on BaseModel
    assert private == {"input", "facts", "follow_up"} & set(kind.model_fields)


def test_an_event_comes_back_from_its_stored_form_as_it_was() -> None:
    for event in (begun(), *step.held("hotel", retry_after=1.5), *undo.unknown("hotel")):
        assert event_from(event.type, json.loads(data_json(event))) == event


def test_the_input_of_a_saga_has_no_field_for_a_secret() -> None:
    assert set(CreateIntegration.model_fields) == {
        *("organization_id", "clinic_id", "name", "instance_name"),
        *("channel", "number", "webhook_url", "server"),
    }
    assert set(DeleteIntegration.model_fields) == {"instance_name", "organization_id"}


@pytest.mark.parametrize("name", ["Clínica\n Sol", "\x1b[31mred", "a\x00b", "tab\there"])
def test_a_name_can_not_command_a_terminal(name: str) -> None:
    about = {"organization_id": str(uuid.uuid4()), "clinic_id": str(uuid.uuid4()), "name": name}
    with pytest.raises(ValidationError, match="control characters"):
        CreateIntegration.model_validate(about)


def test_a_name_may_be_written_as_people_write() -> None:
    for name in ("Clínica Sol", "診療所", "👩‍⚕️ Dr. Ana", "O'Brien & Söhne"):
        about = {"organization_id": str(uuid.uuid4()), "clinic_id": str(uuid.uuid4()), "name": name}
        assert CreateIntegration.model_validate(about).name == name
