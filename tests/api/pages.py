"""Short words for reading the dashboard over HTTP: sign in, look at the markup, send a form."""

import contextlib
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any, Final

import httpx
import pytest

from evosaga.orchestrator import app
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView
from tests.support.driving import create, impatient, outcome, publish

PAGES: Final = (
    "/",
    "/ui/now",
    "/ui/sagas",
    "/ui/integrations",
    "/ui/new-integration",
    "/ui/upkeep",
    "/ui/search?q=odonto",
    "/ui/alerts",
    "/ui/runbook",
    "/ui/definitions",
)
_ADDRESSES: Final = ("href", "src", "action", "formaction", "xlink:href", "hx-get", "hx-post")


def _stays_here(address: str) -> bool:
    return address.startswith(("/", "#")) and not address.startswith(("//", "/\\"))


class Markup(HTMLParser):
    """What a page is made of: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of that kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def field(self, name: str) -> str:
        """The value that a form carries under that name."""
        return next(f["value"] for f in self.all("input") if f.get("name") == name)

    def dangers(self) -> list[str]:
        """Everything through which text from outside could act."""
        found = []
        for tag, attributes in self.elements:
            if tag in ("iframe", "object", "embed", "base", "img", "style"):
                found.append(f"<{tag}>")
            if tag == "script" and not attributes.get("src", "").startswith("/ui/static/"):
                found.append(f"<script {attributes}>")
            for name, value in attributes.items():
                if name.startswith("on") or name in ("style", "srcdoc", "hx-on", "hx-vals"):
                    found.append(f"{tag} {name}={value}")
                if name in (
                    "href",
                    "src",
                    "action",
                    "xlink:href",
                    "hx-get",
                ) and not value.startswith(("/", "#")):
                    found.append(f"{tag} {name}={value}")
                if name in ("href", "src", "action") and value.startswith(("//", "/\\")):
                    found.append(f"{tag} {name}={value}")
        return found


@contextlib.asynccontextmanager
async def signed_in(address: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser's worth of cookies, and no key in any header."""
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
        answer = await client.post("/ui/login", data={"key": key})
        assert answer.status_code == 303, answer.text
        yield client


async def look(client: httpx.AsyncClient, path: str, status: int = 200) -> Markup:
    """A page, read."""
    answer = await client.get(path)
    assert answer.status_code == status, f"{path}: {answer.status_code}\n{answer.text[:2000]}"
    return Markup(answer.text)


async def send(client: httpx.AsyncClient, path: str, **fields: str) -> httpx.Response:
    """Open the form of that page and submit it, with its token and its number."""
    form = await look(client, path)
    hidden = {f["name"]: f["value"] for f in form.all("input") if f.get("type") == "hidden"}
    return await client.post(path, data=hidden | fields)


@contextlib.asynccontextmanager
async def hasty_parts(settings: Settings) -> AsyncIterator[AppContext]:
    """All parts, with a worker that tries twice and gives up."""
    async with app.running_worker(settings, impatient()) as worker:
        known = worker.engine.registry
        gate = CommandHandler(worker.pool, worker.log, worker.services, known, worker.engine)
        yield AppContext(
            settings,
            worker.pool,
            worker.redis,
            worker.log,
            worker.services,
            known,
            gate,
            worker.engine,
            worker.reader,
            worker.failed,
        )


async def made(parts: AppContext, **overrides: Any) -> SagaView:
    """An integration, created through the stream."""
    command = create(**overrides)
    await publish(parts.redis, command)
    return await outcome(parts.pool, command["id"], 30)


async def parked(parts: AppContext, evolution: SimulatedEvolution, **overrides: Any) -> SagaView:
    """A saga that needs a person: its key can't be written, and its instance not be removed."""
    command = create(**overrides)
    name = f"wa-{command['id']}"
    await parts.redis.set(f"evosaga:removed:{name}", command["id"])
    evolution.arm("reject", operation="delete", name=name, times=None, message="no")
    with pytest.MonkeyPatch.context() as shorter:  # it looks again and again whether it is gone
        shorter.setattr("evosaga.sagas.whatsapp.steps.instance_removal._REMOVAL_SECONDS", 0.1)
        await publish(parts.redis, command)
        saga = await outcome(parts.pool, command["id"], 60)
    assert saga.status == "failed", saga
    return saga
