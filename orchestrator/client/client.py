"""The client: one method for each route of the HTTP API."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from evosaga.events.connection_errors import reason
from evosaga.orchestrator.client.errors import (
    Busy,
    EvosagaError,
    NotYet,
    Unavailable,
    read,
    trouble_in,
)
from evosaga.orchestrator.client.models import (
    Created,
    Deleted,
    Event,
    QrCode,
    Saga,
    SagaPage,
    Submitted,
    event_from,
    parse,
)
from evosaga.sagas.command import Command, ResultT

_TRIES: Final = 5
_PAUSE: Final = 0.2
_CONNECT: Final = 10.0
"""Seconds to connect, however long an answer may take."""
_LONGEST_PAUSE: Final = 5.0
_ROUND: Final = 25.0
"""Seconds that one request waits for a saga, below what proxies cut."""


class Client:
    """Use as an async context manager. ``timeout``: seconds for one answer, waits excluded.

    ``tries``: how often a request is sent until an answer comes that is no passing trouble.
    ``verify``: which certificates are trusted; without it the usual authorities.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 10.0,
        tries: int = _TRIES,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout, self._tries = timeout, tries
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=timeout,
            trust_env=False,
            verify=True if verify is None else verify,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def create(
        self,
        organization_id: UUID | str,
        clinic_id: UUID | str,
        name: str,
        *,
        id: str | None = None,
        wait: float = 30.0,
        **options: str,
    ) -> Created:
        """Create an integration and wait up to ``wait`` seconds until it is there.

        ``id`` makes it safe to repeat across restarts of your program. ``options``:
        ``instance_name``, ``channel``, ``number``, ``webhook_url``, ``server``. Raises
        ``AlreadyExists``, ``RolledBack``, ``Parked``, ``NotYet`` and what every call may raise.
        """
        body = {"organization_id": str(organization_id), "clinic_id": str(clinic_id), "name": name}
        told = await self._command(
            "POST", "/integrations/evolution/create", id, wait, body | options
        )
        code = told["qr_code"]
        return parse(Created, told | {"qr_code": parse(QrCode, code) if code else None})

    async def start(
        self, command: Command[ResultT], *, id: str | None = None, wait: float = 30.0
    ) -> ResultT:
        """Start the saga of this command, and wait up to ``wait`` seconds for its result.

        ``id`` makes it safe to repeat across restarts of your program. A command without a model of
        its result gives the result as a dict. Raises ``RolledBack``, ``Parked``, ``Conflict``,
        ``NotYet`` and what every call may raise.
        """
        body = {"command": command.command, "data": command.model_dump(mode="json")}
        told = await self._command("POST", "/sagas", id, wait, body)
        model = type(command).result_model()
        given: Any = told["result"] or {}
        return model.model_validate(given) if model is not None else given

    async def delete(
        self, instance_name: str, *, id: str | None = None, wait: float = 30.0
    ) -> Deleted:
        """Delete an integration and wait until it is gone everywhere.

        Raises ``NotFound``, ``RolledBack``, ``Parked``, ``NotYet`` and what every call may raise.
        """
        path = f"/integrations/evolution/{quote(instance_name, safe='')}"
        told = await self._command("DELETE", path, id, wait)
        return parse(Deleted, told | {"errors": tuple(told["errors"])})

    async def qr_code(self, instance_name: str) -> QrCode:
        """The QR code to pair the phone with, as it is now."""
        path = f"/integrations/evolution/{quote(instance_name, safe='')}/qr"
        return parse(QrCode, (await self._ask("GET", path))["qr_code"])

    async def status(self, reference: UUID | str) -> Saga:
        """A saga, by its id, its command's id or its instance's name. Raises ``NotFound``."""
        return parse(Saga, await self._ask("GET", _saga(reference)))

    async def wait(self, reference: UUID | str, timeout: float = 60.0) -> Saga:
        """The saga once it is over, however it ended. Raises ``NotYet`` after ``timeout`` s."""
        deadline, pause = time.monotonic() + timeout, 0.05
        while True:
            saga = await self.status(reference)
            if saga.over:
                return saga
            if time.monotonic() >= deadline:
                said = f"saga {saga.saga_id} is still {saga.status} after {timeout:g} s"
                raise NotYet("not_yet", said, {"saga_id": str(saga.saga_id)})
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 1.5)

    async def events(self, reference: UUID | str, *, after: int = -1) -> tuple[Event, ...]:
        """The saga's history so far, above the sequence ``after``."""
        found: list[Event] = []
        cursor: str | None = str(after)
        while cursor is not None:
            page = await self._ask("GET", f"{_saga(reference)}/events", {"cursor": cursor})
            found += [event_from(told) for told in page["events"]]
            cursor = page["cursor"]
        return tuple(found)

    async def follow(self, reference: UUID | str) -> AsyncIterator[Event]:
        """The saga's history and what comes, until it is over."""
        seen = -1
        while True:
            for event in await self.events(reference):
                if event.sequence > seen:
                    seen = event.sequence
                    yield event
            saga = await self.status(reference)
            if saga.over and saga.sequence <= seen + 1:
                return
            await asyncio.sleep(0.2)

    async def replay(
        self, reference: UUID | str, reason: str | None = None, *, id: str | None = None
    ) -> Saga:
        """Try again; the saga to wait for, which is a new one if the old was rolled back.

        Raises ``NotFound`` and ``Conflict``.
        """
        return await self._steer("replay", reference, reason, id)

    async def cancel(
        self, reference: UUID | str, reason: str | None = None, *, id: str | None = None
    ) -> Saga:
        """Stop the saga and undo what it did. Raises ``NotFound`` and ``Conflict``."""
        return await self._steer("cancel", reference, reason, id)

    async def list(
        self, *, limit: int = 50, cursor: str | None = None, **filters: str | UUID | datetime
    ) -> SagaPage:
        """A page of sagas. ``filters``: status, saga, organization_id, instance_name, since."""
        asked = {
            k: v.isoformat() if isinstance(v, datetime) else str(v) for k, v in filters.items()
        }
        asked |= {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = await self._ask("GET", "/sagas", asked)
        return SagaPage(tuple(parse(Saga, saga) for saga in page["sagas"]), page["cursor"])

    async def command(
        self, type_: str, data: Mapping[str, Any], *, id: str | None = None
    ) -> Submitted:
        """Give a command as on the stream, and wait for nothing.

        The saga that is named tells what becomes of it; one that is refused is ``rejected``.
        """
        body = {"id": id or str(uuid7()), "type": type_, "data": dict(data)}
        return parse(Submitted, await self._ask("POST", "/commands", json=body))

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Any other route that answers with JSON, such as ``/health``."""
        return await self._ask("GET", path, params)

    async def post(
        self,
        path: str,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str | Sequence[str]] | None = None,
        *,
        id: str | None = None,
    ) -> dict[str, Any]:
        """Any other route that takes a POST. ``id`` makes a command of it safe to repeat."""
        key = {"Idempotency-Key": id} if id else None
        return await self._ask("POST", path, params, headers=key, json=json)

    async def remove(self, path: str) -> dict[str, Any]:
        """Any other route that takes a DELETE."""
        return await self._ask("DELETE", path)

    async def _steer(
        self, verb: str, reference: UUID | str, reason: str | None, id_: str | None
    ) -> Saga:
        key = {"Idempotency-Key": id_ or str(uuid7())}
        body = {"reason": reason} if reason else {}
        told = await self._ask("POST", f"{_saga(reference)}/{verb}", headers=key, json=body)
        return await self.status(told["saga_id"])

    async def _command(
        self, method: str, path: str, id_: str | None, wait: float, body: Any = None
    ) -> dict[str, Any]:
        """Ask under one id until the saga is over or the time is up."""
        key = {"Idempotency-Key": id_ or str(uuid7())}
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, min(_ROUND, deadline - time.monotonic()))
            told = await self._ask(method, path, {"wait": f"{left:.2f}"}, headers=key, json=body)
            if "location" not in told:
                return told
            if time.monotonic() >= deadline:
                said = f"not over after {wait:g} s; it goes on by itself"
                raise NotYet("not_yet", said, told)

    async def _ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, str | Sequence[str]] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> dict[str, Any]:
        """One answer. What may pass is tried again: every request here is safe to repeat."""
        patience = self._timeout + float(str((params or {}).get("wait", 0.0)))
        timeout = httpx.Timeout(patience, connect=min(patience, _CONNECT))
        for attempt in range(1, self._tries + 1):
            try:
                answer = await self._http.request(
                    method, path, params=params, headers=headers, json=json, timeout=timeout
                )
            except httpx.TransportError as error:
                trouble: EvosagaError = Unavailable(
                    "unreachable", f"evosaga can't be reached ({reason(error)})"
                )
                trouble.__cause__ = error
                pause = _PAUSE * 2**attempt
            else:
                if answer.status_code < 400:
                    return read(answer)
                trouble = trouble_in(answer)
                trouble.tries = attempt
                if not isinstance(trouble, Busy | Unavailable):
                    raise trouble
                pause = float(answer.headers.get("retry-after", _PAUSE))
            if attempt == self._tries:
                raise trouble
            await asyncio.sleep(min(pause, _LONGEST_PAUSE))
        raise AssertionError("unreachable")


def _saga(reference: UUID | str) -> str:
    return f"/sagas/{quote(str(reference), safe='')}"
