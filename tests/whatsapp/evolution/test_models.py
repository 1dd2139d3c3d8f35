"""What an element of Evolution's list says, in the shapes that releases have given it."""

from typing import Any

import pytest

from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.evolution.models import (
    ListedInstance,
    UnreadableList,
    linked,
    listed_instance,
)

TODAY = {
    "name": "x",
    "token": "T",
    "connectionStatus": "open",
    "ownerJid": "5511999990000:3@s.whatsapp.net",
    "integration": "WHATSAPP-BAILEYS",
    "disconnectionReasonCode": 401,
}
BEFORE = {
    "instance": {
        "instanceName": "x",
        "apikey": "T",
        "status": "open",
        "owner": "5511999990000@s.whatsapp.net",
        "integration": {"integration": "WHATSAPP-BAILEYS", "webhook_wa_business": "…"},
    }
}


def find(body: object, name: str) -> ListedInstance | None:
    return Answer(200, body, "HTTP 200").listed(name)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "\udfff" * 9000, "é" * 10_000, "é\0" * 299])
def test_what_postgres_can_not_store_is_not_kept_of_an_element(name: str) -> None:
    odd: dict[str, Any] = {"name": name, "token": name, "connectionStatus": name, "ownerJid": name}
    odd |= {"integration": name, "disconnectionReasonCode": 2**40}
    one = listed_instance(odd | {"disconnectionAt": "0001-01-01T00:00:00+14:00"})
    assert one is not None
    assert one.name != name
    assert len(one.name) <= 255
    for text in (one.name, one.status, one.channel, one.owner):
        assert text is not None
        assert "\0" not in text.encode().decode()
    assert (one.token, one.reason, one.closed_at) == (None, None, None)
    assert one == listed_instance(odd), "the same name each time"


@pytest.mark.parametrize("odd", [None, 1, True, [], {}, ["a"], {"a": 1}, 2.5])
def test_a_name_of_another_type_can_not_be_read_and_other_fields_are_missing(odd: Any) -> None:
    assert listed_instance(dict.fromkeys(TODAY, odd)) is None
    one = listed_instance(dict.fromkeys([*TODAY, "disconnectionAt"], odd) | {"name": "x"})
    assert one is not None
    assert (one.name, one.token, one.status, one.owner) == ("x", None, None, None)


@pytest.mark.parametrize("element", [TODAY, BEFORE])
def test_old_and_new_elements_say_the_same(element: dict[str, Any]) -> None:
    one = listed_instance(element)
    assert one is not None
    assert (one.name, one.token, one.status) == ("x", "T", "open")
    assert (one.phone, one.linked, one.channel) == ("5511999990000", True, "WHATSAPP-BAILEYS")
    assert find([{"name": "y"}, element], "x") == one


@pytest.mark.parametrize("token", [None, "", 17, ["T"]])
def test_a_token_that_is_no_text_is_none(token: object) -> None:
    found = find([TODAY | {"token": token}], "x")
    assert found is not None
    assert found.token is None


def test_of_two_elements_of_a_name_the_one_with_a_token_counts() -> None:
    found = find([{"name": "x"}, TODAY, {"name": "x", "token": "U"}], "x")
    assert found is not None
    assert found.token == "T"


@pytest.mark.parametrize("odd", [None, 17, "x", [], {}, {"name": None}, {"instance": {"a": 1}}])
def test_one_element_that_nobody_can_read_proves_that_nothing_is_absent(odd: object) -> None:
    assert find([{"name": "y"}], "x") is None
    with pytest.raises(UnreadableList, match="1 of 2"):
        find([{"name": "y"}, odd], "x")
    assert find([odd, TODAY], "x") is not None, "what is there is there"


@pytest.mark.parametrize("body", [None, {}, {"instances": [TODAY]}, "[]", 5])
def test_what_is_no_list_proves_nothing(body: object) -> None:
    with pytest.raises(UnreadableList):
        find(body, "x")


def test_a_lid_is_somebody_without_a_number() -> None:
    one = listed_instance(TODAY | {"ownerJid": "998877665544332211@lid"})
    assert one is not None
    assert (one.phone, one.linked) == (None, True)
    assert not linked("")
    assert not linked(None)


@pytest.mark.parametrize(
    "body",
    [None, 5, "x", [], {}, {"instance": None}, {"instance": []}, {"instance": {"state": 5}}],
)
def test_odd_shapes_have_no_state_no_code_no_message_and_raise_nothing(body: object) -> None:
    answer = Answer(200, body, "HTTP 200")
    assert answer.instance is None or answer.instance.said is None
    assert answer.qr_code is None
    assert answer.message is None
    assert not answer.failed
    assert answer.created is None or answer.created.token is None


def test_a_state_of_a_later_release_is_said_and_not_known() -> None:
    told = Answer(200, {"instance": {"instanceName": "x", "state": "paused"}}, "HTTP 200").instance
    assert told is not None
    assert (told.name, told.said, told.state) == ("x", "paused", None)


@pytest.mark.parametrize("message", ["no", ["no"], [["no"]]])
def test_an_error_says_the_same_in_each_of_its_shapes(message: object) -> None:
    assert Answer(400, {"response": {"message": message}}, "HTTP 400").message == "no"
    assert Answer(503, {"error": "no"}, "HTTP 503").message == "no"


def test_a_webhook_keeps_of_its_headers_what_is_text() -> None:
    row = {"enabled": True, "url": "u", "events": ["A", 5], "headers": {"a": "x", "b": ["y"]}}
    found = Answer(200, row, "HTTP 200").webhook
    assert found is not None
    assert (found.enabled, found.events, found.headers) == (True, ("A",), {"a": "x"})
