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
