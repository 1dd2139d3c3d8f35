"""Client of one Evolution server: its calls, and the look that finds out what really is there.

What an answer proves is written down in ``answers`` and ``evidence``. Ownership is checked in one
call: Evolution's guards run in the order exists (404), then key (401), so with our own instance
token as the key, ``connectionState`` says absent, not ours, or ours. Deletes carry that token, and
so compare before they delete; the global key is for the one case that ``partial`` proves to be
ours. (All as observed on Evolution 2.3.6 and 2.3.7.)
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from evosaga.sagas.whatsapp.evolution.answer_origin import explained, recognised
from evosaga.sagas.whatsapp.evolution.answers import (
    MISCONFIGURED,
    Answer,
    Operation,
    Presence,
    health,
)
from evosaga.sagas.whatsapp.evolution.circuit_breaker import (
    BreakerState,
    CallNotPermitted,
    CallOutcome,
    CircuitBreaker,
)
from evosaga.sagas.whatsapp.evolution.evidence import FIRST_LOOK, read_look
from evosaga.sagas.whatsapp.evolution.single_flight import SingleFlight
from evosaga.sagas.whatsapp.evolution.transport import (
    LARGEST_BODY,
    LARGEST_LIST,
    HttpTransport,
    Wrap,
    request_to,
)

__all__ = ["Answer", "BreakerState", "EvolutionApi", "InstanceSighting", "Presence"]

_QUICK: Final = frozenset({Operation.STATE, Operation.OWN, Operation.NAMED, Operation.WEBHOOK})
_QUICK_TIMEOUT: Final = 8.0
"""Seconds for what reads one instance: after a silent create its step has little time left."""
_PATIENCE: Final = 3.0
"""Seconds to wait for a place when many calls are out."""


@dataclass(frozen=True, slots=True)
class InstanceSighting:
    """What a look found, the evidence as a sentence, and the answer that it rests on."""

    sight: Presence
    evidence: str
    answer: Answer
    last: Operation = Operation.STATE
    """The question that ``answer`` answers."""

    @property
    def rowless(self) -> bool:
        """Whether it is half an instance of which there is no row: only memory has it."""
        return self.sight is Presence.HALF and self.last is Operation.NAMED


class EvolutionApi:
    """A client of one server. Use as an async context manager.

    No method raises for what the server or the network does; they answer with evidence. While the
    server is in trouble, or as busy as it should be, nothing is sent, and the answer says so.
    ``timeout`` is in seconds and bounds a whole call, however slowly the bytes trickle.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        concurrency: int = 64,
        queue: int | None = None,
        before_send: Callable[[], None] = lambda: None,
        wrap: Wrap | None = None,
    ) -> None:
        """``concurrency``: so many calls are out at once, and ``queue`` so many wait to be.

        ``before_send`` may raise to keep a worker that is no longer in charge from acting.
        ``wrap``: what goes around the connections.
        """
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._timeout = timeout
        self._before_send = before_send
        self._breaker = CircuitBreaker(_host(self.url), concurrency, queue=queue)
        self._list = SingleFlight(self._fetch_list)
        self._transport = HttpTransport(api_key, wrap)

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._list.close()
        await self._transport.close()

    @property
    def state(self) -> BreakerState:
        """Whether calls are let through, and if not, why and for how long."""
        return self._breaker.state

    async def create(self, payload: dict[str, Any]) -> Answer:
        """POST /instance/create with the global key."""
        return await self._call(
            Operation.CREATE, "POST", "/instance/create", self._api_key, payload
        )

    async def delete(self, name: str, token: str) -> Answer:
        """DELETE the instance if, and only if, it carries this token."""
        return await self._call(
            Operation.DELETE, "DELETE", f"/instance/delete/{_part(name)}", token
        )

    async def delete_rowless(self, name: str) -> Answer:
        """DELETE whatever bears the name, with the global key: see ``partial``."""
        return await self._call(
            Operation.DELETE, "DELETE", f"/instance/delete/{_part(name)}", self._api_key
        )

    async def webhook(self, name: str, token: str) -> Answer:
        """The instance's webhook as its row says; ``null``: it has none."""
        return await self._call(Operation.WEBHOOK, "GET", f"/webhook/find/{_part(name)}", token)

    async def set_webhook(self, name: str, token: str, wanted: dict[str, Any]) -> Answer:
        """Let it be so: 201, and the row. What is left out of ``headers`` stays as it was."""
        path = f"/webhook/set/{_part(name)}"
        return await self._call(Operation.SET_WEBHOOK, "POST", path, token, {"webhook": wanted})

    async def set_settings(self, name: str, token: str, wanted: dict[str, Any]) -> Answer:
        """Write the instance's settings, all of them: 201."""
        path = f"/settings/set/{_part(name)}"
        return await self._call(Operation.SET_SETTINGS, "POST", path, token, wanted)

    async def connect(self, name: str, token: str, number: str | None) -> Answer:
        """Start pairing and ask for the QR code; takes two seconds on a closed instance."""
        query = f"?number={number}" if number else ""
        return await self._call(
            Operation.CONNECT, "GET", f"/instance/connect/{_part(name)}{query}", token
        )

    async def instances(self) -> Answer:
        """Every instance of the server, as its database has them. The body is shared: read only.

        With thousands of instances that is megabytes, so all who ask at the same time get the
        same list, one that was asked for after they came.
        """
        self._before_send()
        try:
            async with asyncio.timeout(self._timeout):
                return await self._list()
        except TimeoutError:
            return Answer(0, None, "nothing in time")

    async def look(self, name: str, token: str) -> Presence:
        """What is there under this name, in both of Evolution's views."""
        return (await self.see(name, token)).sight

    async def see(self, name: str, token: str) -> InstanceSighting:
        """The same, with the evidence."""
        asked = FIRST_LOOK
        while True:
            answer = await self._ask(asked, name, token)
            found, evidence = read_look(asked, answer, name, token)
            if isinstance(found, Presence):
                return InstanceSighting(found, evidence, answer, asked)
            asked = found

    async def memory(self, name: str, token: str | None) -> Answer:
        """The first question of a look alone: what Evolution's memory says of the instance.

        Without a token it is asked with the global key, which opens every instance and does not
        prove whose it is: for what a row of ours names and the list shows no token of.
        """
        return await self._ask(Operation.STATE, name, self._api_key if token is None else token)

    async def own_rows(self, token: str) -> Answer:
        """The rows that carry this token, as the list shows them: one, or none."""
        return await self._ask(Operation.OWN, "", token)

    async def _ask(self, asked: Operation, name: str, token: str) -> Answer:
        """One question of a look."""
        everything = "/instance/fetchInstances"
        match asked:
            case Operation.STATE:
                path = f"/instance/connectionState/{_part(name)}"
                return await self._call(asked, "GET", path, token)
            case Operation.OWN:
                return await self._call(asked, "GET", everything, token)
            case Operation.NAMED:
                path = f"{everything}?instanceName={_part(name)}"
                return await self._call(asked, "GET", path, self._api_key)
            case Operation.LIST:
                return await self.instances()
            case _:
                raise ValueError(f"{asked} is no question of a look")

    async def _fetch_list(self) -> Answer:
        # Not fenced: each of those who share it has been checked, and its pin is only one's.
        path = "/instance/fetchInstances"
        return await self._call(
            Operation.LIST, "GET", path, self._api_key, largest=LARGEST_LIST, fenced=False
        )

    async def _call(
        self,
        asked: Operation,
        method: str,
        path: str,
        key: str,
        payload: dict[str, Any] | None = None,
        *,
        largest: int = LARGEST_BODY,
        fenced: bool = True,
    ) -> Answer:
        timeout = min(self._timeout, _QUICK_TIMEOUT) if asked in _QUICK else self._timeout
        request = request_to(self.url, path, method, key, payload)
        place = await self._breaker.enter(min(_PATIENCE, timeout / 2))
        if isinstance(place, CallNotPermitted):
            return _not_sent(place)
        told, why, began = None, f"{asked}: nothing in time", time.monotonic()
        try:
            if fenced:
                self._before_send()
            answer = recognised(asked, await self._transport.send(request, timeout, largest))
            told = health(asked, answer)
            if told is CallOutcome.MISCONFIGURED and not answer.meaning:
                answer = explained(answer)
            why = "" if told is CallOutcome.WELL else f"{asked}: {answer.told}"
        finally:
            if told is None and time.monotonic() - began >= _QUICK_TIMEOUT:
                told = CallOutcome.SICK  # the step's own time was over before ours
            self._breaker.leave(place, told, why)
        if told is CallOutcome.WELL:
            return answer
        code = MISCONFIGURED if told is CallOutcome.MISCONFIGURED else answer.code
        wait = answer.retry_after or self._breaker.retry_after()
        return replace(answer, code=code, retry_after=wait)


def _part(name: str) -> str:
    """The name as one segment of a path, or as a value of a query."""
    return quote(name, safe="")


def _not_sent(shut: CallNotPermitted) -> Answer:
    text = f"Evolution is not asked at the moment ({shut.reason})"
    return Answer(0, None, text, False, shut.retry_after, f"evolution_{shut.code}")


def _host(url: str) -> str:
    """The server for a log line: no user, no password, no path."""
    return urlsplit(url).netloc.rpartition("@")[2]
