"""Evolution's list is read while it arrives, whatever the pieces are that it arrives in."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import strategies as st

from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.evolution.list_reader import ListReader
from evosaga.sagas.whatsapp.evolution.models import InstanceList
from evosaga.sagas.whatsapp.evolution.transport import LARGEST_LIST, read_list
from tests.support.fuzzing import fuzzed

SECRET = "the-global-key"
ONE = {"name": "clínica-☀", "token": "t", "connectionStatus": "open", "Setting": {"a": [1, {}]}}


class Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def read(*pieces: bytes, status: int = 200, largest: int = LARGEST_LIST) -> Answer:
    response = httpx.Response(status, stream=Pieces(list(pieces)))
    return asyncio.run(read_list(response, largest, SECRET))


def names(answer: Answer) -> list[str]:
    assert answer.instances is not None
    return [one.name for one in answer.instances.read()[0]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_the_same_in_whatever_pieces_it_comes(size: int, indent: int | None) -> None:
    elements: list[Any] = [ONE | {"name": f"{ONE['name']}-{n}"} for n in range(5)]
    elements += [17, None, 3.25, "x", {"name": "last"}]
    body = json.dumps(elements, indent=indent, ensure_ascii=False).encode()
    answer = read(*(body[at : at + size] for at in range(0, len(body), size)))
    whole = InstanceList(elements)
    assert answer.instances is not None
    assert answer.instances.read() == whole.read()
    assert len(answer.instances) == len(whole) == 10


@fuzzed(
    st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=6), st.data()
)
def test_any_json_array_is_read_to_its_end(elements: list[Any], data: st.DataObject) -> None:
    body = json.dumps(elements).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    reader = ListReader(SECRET)
    for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        reader.feed(body[begin:end])
    assert reader.found is not None
    assert len(reader.found) == len(elements)


@pytest.mark.parametrize(
    "body",
    [
        b"[",
        b'[{"name":"a"}',
        b'[{"name":"a"},',
        b'[{"name":"a"},]',
        b"[,]",
        b'[{"name":"a"} {"name":"b"}]',
        b'[{"name":"a"}] and more',
        b'[{"name":"a"}][]',
        b'[{"name":"\xff"}]',
        b"[" * 5000,
        b'[{"name":"' + b"a" * 1_100_000 + b'"}]',
    ],
)
def test_what_is_no_whole_list_proves_nothing_and_is_no_alien_page(body: bytes) -> None:
    answer = read(*(body[at : at + 1000] for at in range(0, len(body), 1000)))
    assert (answer.status, answer.body, answer.alien) == (200, None, False)


@pytest.mark.parametrize("pieces", [(b"[]",), (b" ", b"\n[", b" ]\n"), (b"", b"[]")])
def test_an_empty_list_is_a_list(pieces: tuple[bytes, ...]) -> None:
    assert names(read(*pieces)) == []


def test_the_key_is_taken_out_even_where_a_piece_ends_within_it() -> None:
    body = json.dumps([{"name": f"x{SECRET}y"}]).encode()
    for cut in range(len(body)):
        assert names(read(body[:cut], body[cut:])) == ["x[redacted]y"]


def test_what_is_no_list_is_read_as_any_other_answer() -> None:
    assert read(b"<html>", b"log in").alien
    assert read(b'{"error":', b"true}").body == {"error": True}
    assert read(b'[{"name":"a"}]', status=500).body == [{"name": "a"}]
    assert read(b"", b"").body is None


def test_a_list_beyond_all_measure_is_not_read_on() -> None:
    pieces = [b"["] + [b'{"name":"a"},'] * 1000
    assert read(*pieces, largest=5000).text == "HTTP 200, too large"
