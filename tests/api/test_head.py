"""HEAD is what monitors and proxies ask with: everything that GET gives, without the body."""

import asyncio
from uuid import uuid4

import pytest

from tests.api.conftest import CREATE, OUR_KEY, asked, client_with


@pytest.mark.parametrize(
    "path", ["/", "/ui/login", "/sagas?limit=1", "/metrics", "/openapi.json", "/healthz"]
)
async def test_head_answers_as_get_does_and_without_a_body(address_: str, path: str) -> None:
    async with client_with(address_, OUR_KEY) as client:
        get, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")


async def test_the_head_of_a_stream_does_not_wait_for_its_events(address_: str) -> None:
    async with client_with(address_, OUR_KEY) as client:
        saga = (await client.post(CREATE, json=asked())).json()["saga_id"]
        async with asyncio.timeout(10):
            head = await client.head(f"/sagas/{saga}/stream")
    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")


async def test_what_get_refuses_head_refuses(address_: str) -> None:
    async with client_with(address_, OUR_KEY) as client:
        assert (await client.head(f"/sagas/{uuid4()}")).status_code == 404
        assert (await client.head("/commands")).status_code == 405
    async with client_with(address_, None) as stranger:
        assert (await stranger.head("/sagas")).status_code == 401
