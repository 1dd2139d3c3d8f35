"""A real browser, driven over the DevTools protocol with nothing but a web socket.

Chromium comes from the system; where there is none the tests that need one are skipped, and say
so. Elements are found by CSS selector; whatever has to happen is waited for, never slept for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, cast

import aiohttp

from tests.support.waiting import eventually

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE: Final = 30.0


def chromium() -> str | None:
    """Where the system's Chromium is."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Channel:
    """A line to the browser: commands, their results, and what it says by itself."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take in what the browser says while inside."""
        task = asyncio.create_task(self._listen(), name="devtools")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" not in told:
                await self._heard(told["method"], told["params"])
                continue
            waiting = self._answers.pop(told["id"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(told)

    async def _heard(self, method: str, params: dict[str, Any]) -> None:
        pass

    async def _send(self, method: str, **params: Any) -> int:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return number

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[await self._send(method, **params)] = waiting
        told = await asyncio.wait_for(waiting, _PATIENCE)
        if "error" in told:
            raise AssertionError(f"{method}: {told['error']['message']}")
        return cast(dict[str, Any], told["result"])


class Page(Channel):
    """One tab with cookies of its own. ``dialogs`` and ``complaints`` are what it reported."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        super().__init__(socket)
        self.dialogs: list[str] = []
        self.complaints: list[str] = []
        """Errors of scripts, and what the content security policy blocked."""

    async def _heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            await self._send("Page.handleJavaScriptDialog", accept=True)
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            if entry["source"] != "network":  # a 4xx of ours is an answer, not a complaint
                self.complaints.append(entry["text"])

    async def fresh(self) -> None:
        """As a new tab is: empty, without cookies, wide, and nothing was said."""
        await self.call("Emulation.setScriptExecutionDisabled", value=False)
        await self.goto("about:blank")
        await self.call("Network.clearBrowserCookies")
        await self.size(1280)
        self.dialogs.clear()
        self.complaints.clear()

    async def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise AssertionError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    async def goto(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        await self.js("window.__before = true")
        told = await self.call("Page.navigate", url=url)
        assert not told.get("errorText"), f"{url}: {told['errorText']}"
        await self._loaded()

    async def _loaded(self) -> None:
        async def done() -> bool:
            with contextlib.suppress(AssertionError):  # between two documents there is none
                return bool(await self.js("document.readyState === 'complete' && !window.__before"))
            return False

        await eventually(done, _PATIENCE, message="the page to load")

    async def text(self, selector: str = "body") -> str:
        """What can be read there; empty when there is nothing."""
        found = await self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(found)

    async def count(self, selector: str) -> int:
        """How many elements fit."""
        return int(await self.js(f"document.querySelectorAll({json.dumps(selector)}).length"))

    async def fill(self, selector: str, value: str) -> None:
        """Type into a field."""
        where, what = json.dumps(selector), json.dumps(value)
        await self.js(f"{{const f = document.querySelector({where}); f.focus(); f.value = {what}}}")

    async def click(self, selector: str) -> None:
        """Click, and wait for the page that follows."""
        await self.js("window.__before = true")
        await self.js(f"document.querySelector({json.dumps(selector)}).click()")
        await self._loaded()

    async def until(self, words: str, selector: str = "body", timeout: float = _PATIENCE) -> None:
        """Wait until these words can be read there."""

        async def there() -> bool:
            with contextlib.suppress(AssertionError):
                return words in await self.text(selector)
            return False

        try:
            await eventually(there, timeout)
        except AssertionError:
            seen = (await self.text())[:1500]
            raise AssertionError(f"{words!r} never came; the page says:\n{seen}") from None

    async def path(self) -> str:
        """Where the page is."""
        return str(await self.js("location.pathname + location.search"))

    async def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """The window, in CSS pixels; a narrow one is a phone."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, *, whole: bool = True) -> bytes:
        """A PNG of the page, from its top to its bottom."""
        told = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(told["data"])


class Browser:
    """A running Chromium. Every page has cookies of its own, like a private window."""

    def __init__(self, http: aiohttp.ClientSession, address: str, control: Channel) -> None:
        self._http = http
        self._address = address
        self._control = control

    @contextlib.asynccontextmanager
    async def page(self, *, width: int = 1280) -> AsyncIterator[Page]:
        """A new tab, gone afterwards."""
        context = (await self._control.call("Target.createBrowserContext"))["browserContextId"]
        target = await self._control.call(
            "Target.createTarget", url="about:blank", browserContextId=context
        )
        place = f"ws://{self._address}/devtools/page/{target['targetId']}"
        async with self._http.ws_connect(place, max_msg_size=0) as socket:
            page = Page(socket)
            async with page.listening():
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                await page.size(width)
                yield page
        await self._control.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.asynccontextmanager
async def browser(path: str, profile: Path) -> AsyncIterator[Browser]:
    """Start Chromium with an empty profile; it and its children are gone afterwards."""
    process = subprocess.Popen(  # noqa: ASYNC220  # starting it takes no time, and it must be ended
        _command(path, profile),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        told = profile / "DevToolsActivePort"
        await eventually(
            lambda: told.exists() and len(told.read_text().splitlines()) == 2,
            _PATIENCE,
            message="Chromium to say where it listens",
        )
        port, place = told.read_text().splitlines()
        address = f"127.0.0.1:{port}"
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://{address}{place}", max_msg_size=0) as socket,
        ):
            control = Channel(socket)
            async with control.listening():
                yield Browser(http, address, control)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _command(path: str, profile: Path) -> list[str]:
    options = [
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--force-color-profile=srgb",
        "--hide-scrollbars",
    ]
    if os.geteuid() == 0:  # its sandbox refuses root
        options.append("--no-sandbox")
    return [path, *options, "about:blank"]
