"""Handles a request: read, apply faults, answer, record, send."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from evosaga.orchestrator.local.evolution import guards, responses
from evosaga.orchestrator.local.evolution.fault_modes import MODES
from evosaga.orchestrator.local.evolution.faults import Armed
from evosaga.orchestrator.local.evolution.guards import Call, Died, Refused, Reply, error
from evosaga.orchestrator.local.evolution.instances import World
from evosaga.orchestrator.local.evolution.journal import JournalEntry, fingerprint
from evosaga.orchestrator.local.evolution.operations import OPERATIONS

_PLAIN_ROUTES = {
    ("GET", ""): "root",
    ("POST", "instance/create"): "create",
    ("GET", "instance/fetchInstances"): "fetch",
}
_NAMED_ROUTES = {
    ("GET", "instance", "connectionState"): "connectionState",
    ("GET", "instance", "connect"): "connect",
    ("POST", "instance", "restart"): "restart",
    ("DELETE", "instance", "logout"): "logout",
    ("DELETE", "instance", "delete"): "delete",
    ("POST", "webhook", "set"): "webhook_set",
    ("GET", "webhook", "find"): "webhook_find",
    ("POST", "settings", "set"): "settings_set",
    ("GET", "settings", "find"): "settings_find",
}
_RESTARTS = frozenset({"restart", "restore"})


class Reception:
    """Takes requests. One object for the lifetime of the server, restarts included."""

    def __init__(
        self,
        world: World,
        act: Callable[[Armed, Call], Awaitable[None]],
        die: Callable[[Died], Awaitable[None]],
    ) -> None:
        self._world = world
        self._act = act
        self._die = die
        self._late: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        try:
            call = await self._read(request)
        except OSError:  # the connection broke before the request was complete
            return web.Response()
        try:
            reply = await self._struck(call, request)
        except asyncio.CancelledError:  # a crash; effects up to now remain
            self._record(call, Reply(0))
            raise
        except Died as death:
            responses.drop(request.transport)
            self._record(call, Reply(0, cut_after=0))
            await self._die(death)
            return web.Response()
        self._record(call, reply)
        return await responses.send(request, reply, self.stopping)

    def stop(self) -> None:
        self.stopping.set()
        for task in self._late:
            task.cancel()

    # -- in

    async def _read(self, request: web.BaseRequest) -> Call:
        path, _, query = request.raw_path.partition("?")
        operation, name = _route(request.method, path)
        call = Call(
            sequence=self._world.journal.next_sequence(),
            received_at=time.time(),
            method=request.method,
            path=path,
            operation=operation,
            name=name,
            named=name is not None,
            key=request.headers.get("apikey"),
            query=dict(parse_qsl(query)) if query else {},
            url=request.raw_path,
        )
        try:
            call.body = _json_object(await request.read(), request.headers.get("Content-Type", ""))
        except (ValueError, RecursionError) as problem:
            call.broken = str(problem)
        if operation == "create":
            call.named = "instanceName" in call.body
            call.name = call.body.get("instanceName")
        elif operation == "fetch":
            call.name = call.query.get("instanceName")
        self._identify(call)
        return call

    def _identify(self, call: Call) -> None:
        """Find the instance of the request, for the journal, before anything changes."""
        call.key_kind = guards.kind_of_key(self._world, call)
        token = call.body.get("token")
        if call.operation == "create":
            call.token = token if isinstance(token, str) else None
        elif (row := self._world.rows.get(call.known_as or "")) is not None:
            call.token, call.instance_id = row.token, row.id

    # -- through

    async def _struck(self, call: Call, request: web.BaseRequest) -> Reply:
        if not self._world.faults.armed:
            return await self._answer(call)
        first, decisive = self._world.faults.plan(call)
        for armed in first:
            if armed.mode == "slow":
                await asyncio.sleep(armed.parameters["seconds"])
                continue
            if armed.mode in _RESTARTS:
                responses.drop(request.transport)
            await self._act(armed, call)
        if _RESTARTS & {armed.mode for armed in first}:
            return Reply(0, cut_after=0)
        return await self._decided(call, decisive)

    async def _decided(self, call: Call, armed: Armed | None) -> Reply:
        moment = MODES[armed.mode].moment if armed is not None else None
        if armed is None or moment is None:
            return await self._answer(call)
        if moment == "before":
            return responses.refusal(armed)
        if moment == "late":
            self._later(self._land(replace(call), armed.parameters["seconds"]))
            return responses.lost(armed)
        reply = await self._answer(call)
        if armed.mode == "slow_after":
            await asyncio.sleep(armed.parameters["seconds"])
        return responses.spoiled(armed, reply)

    async def _answer(self, call: Call) -> Reply:
        if call.broken is not None:
            return error(400, call.broken, reason="Internal Server Error")
        operation = OPERATIONS.get(call.operation)
        if operation is None:
            return error(404, [f"Cannot {call.method} {call.url}"])
        try:
            guards.check(self._world, call)
            return await operation(self._world, call)
        except Refused as refused:
            return refused.reply

    async def _land(self, call: Call, seconds: float) -> None:
        """Apply the request that was reported lost, in the present state."""
        await asyncio.sleep(seconds)
        try:
            reply = await self._answer(call)
        except Died as death:
            reply = Reply(0)
            await self._die(death)
        self._world.journal.landed(
            call.applied,
            call.why(f"a late {call.operation}"),
            name=call.known_as,
            instance_id=call.instance_id,
            token=call.token,
            operation=call.operation,
            status=reply.status,
        )

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    # -- and out

    def _record(self, call: Call, reply: Reply) -> None:
        self._world.journal.record(
            JournalEntry(
                sequence=call.sequence,
                kind="request",
                received_at=call.received_at,
                answered_at=None if reply.hang or reply.cut_after is not None else time.time(),
                method=call.method,
                path=call.path,
                operation=call.operation or None,
                name=call.known_as,
                key_kind=call.key_kind,
                key_hash=call.key_hash,
                token_hash=fingerprint(call.token) if call.token else None,
                status=reply.status or None,
                fault="+".join(call.faults) or None,
                applied=call.applied,
                instance_id=call.instance_id,
            )
        )


def _route(method: str, path: str) -> tuple[str, str | None]:
    """The operation ("" for an unknown route) and the instance's name in the path."""
    parts = path.strip("/").split("/")
    if len(parts) == 3 and (operation := _NAMED_ROUTES.get((method, parts[0], parts[1]))):
        return operation, unquote(parts[2])
    return _PLAIN_ROUTES.get((method, path.strip("/")), ""), None


def _json_object(raw: bytes, content_type: str) -> dict[str, Any]:
    """The body when its type is JSON; any other body counts as none."""
    if not raw or "application/json" not in content_type:
        return {}
    body = json.loads(raw, parse_constant=_no_constant)
    if not isinstance(body, dict | list):
        raise ValueError("Unexpected token in JSON at position 0")
    return body if isinstance(body, dict) else {}


def _no_constant(constant: str) -> float:
    raise ValueError(f"Unexpected token {constant[0]} in JSON")
