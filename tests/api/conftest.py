"""The HTTP API as people meet it: a real uvicorn on a free port, with a real worker behind it."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
import pytest

from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import address, bind, listening, parts_with_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.sagas.whatsapp.evolution.tls import trusted
from tests.support.cheaper import removals_looked_at_soon

OPERATOR: Final = "the-operators-key-of-the-tests"
OURS: Final = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
OUR_KEY: Final = "our-organizations-key-of-the-tests"
THEIRS: Final = uuid.UUID("b7a1f0de-3c1e-4d37-9a55-0d2f5a3c9e10")
THEIR_KEY: Final = "their-organizations-key-of-the-tests"
API_KEYS: Final = f"operator:{OPERATOR},ours:{OUR_KEY}:{OURS},theirs:{THEIR_KEY}:{THEIRS}"


@pytest.fixture(scope="module", autouse=True)
def _looked_at_soon() -> Iterator[None]:
    with removals_looked_at_soon():
        yield


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With three keys: the operator's and those of two organizations."""
    return Settings.model_validate(settings.model_dump() | {"api_keys": API_KEYS})


CREATE: Final = "/integrations/evolution/create"


def asked(**overrides: Any) -> dict[str, Any]:
    """The body of a create for our organization; of a channel that needs no QR code, so quick."""
    body = {
        "organization_id": str(OURS),
        "clinic_id": str(uuid.uuid4()),
        "name": "Clínica Sol",
        "channel": "EVOLUTION",
    }
    return body | overrides


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The answer's problem, after a look at its shape."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "detail"} <= set(told)
    assert told["status"] == answer.status_code
    assert told["type"] == f"/docs#{told['code']}"
    return told


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    """A worker, and all that the API stands on."""
    async with parts_with_worker(settings) as parts:
        yield parts


@pytest.fixture
async def address_(parts: AppContext) -> AsyncIterator[str]:
    """Where the API listens."""
    async with served(parts) as where:
        yield where


@contextlib.asynccontextmanager
async def served(parts: AppContext) -> AsyncIterator[str]:
    """An API on these parts; its address."""
    with bind("127.0.0.1", 0) as listener:
        where = address(listener)
        async with listening(parts, listener):
            yield where


def client_with(where: str, key: str | None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(
        base_url=where, headers=headers, trust_env=False, verify=trusted(), timeout=60
    )


@pytest.fixture
async def operator(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """Asks with a key that sees everything."""
    async with client_with(address_, OPERATOR) as client:
        yield client


@pytest.fixture
async def ours(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """Asks with the key of one organization."""
    async with client_with(address_, OUR_KEY) as client:
        yield client


@pytest.fixture
async def theirs(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """Asks with the key of another organization."""
    async with client_with(address_, THEIR_KEY) as client:
        yield client


@pytest.fixture
async def nobody(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    """Asks without a key."""
    async with client_with(address_, None) as client:
        yield client
