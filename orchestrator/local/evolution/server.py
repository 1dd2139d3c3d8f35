"""The simulated server: lifetime, faults, and changes for tests and operators."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from evosaga.orchestrator.local.evolution import admin, control_api, views
from evosaga.orchestrator.local.evolution import phone as whatsapp
from evosaga.orchestrator.local.evolution.dispatcher import Reception
from evosaga.orchestrator.local.evolution.faults import Armed
from evosaga.orchestrator.local.evolution.guards import Call, Died
from evosaga.orchestrator.local.evolution.instances import (
    BAILEYS,
    EVOLUTION,
    Instance,
    Row,
    Settings,
    World,
)
from evosaga.orchestrator.local.evolution.journal import Journal, Why
from evosaga.orchestrator.local.evolution.listener import Door
from evosaga.orchestrator.local.evolution.views import View
from evosaga.orchestrator.local.evolution.webhook_config import webhook_row

VERSIONS = ("2.3.6", "2.3.7")
BY_HAND = Why("by hand")
_NO_WEBHOOK = {"enabled": True, "events": []}


class SimulatedEvolution:
    """A simulated Evolution API server on a real port; an async context manager.

    ``pace`` scales its own waits: 1.0 is real time (5 s for a QR, 75 to 220 ms for a removal, 20
    minutes of webhook retries), 0 is at once. Parameters of faults are always real seconds.
    ``save_instances`` is CACHE_REDIS_SAVE_INSTANCES, true as shipped; ``delete_refusal`` is the
    probability that 2.3.7 refuses the DELETE of a connecting or open Baileys instance (None: as
    observed). ``port`` 0 takes a free one. All methods must be called on the loop that runs the
    server; LookupError means no such instance, ValueError an invalid request.
    """

    def __init__(
        self,
        *,
        api_key: str,
        host: str = "127.0.0.1",
        port: int = 0,
        version: str = "2.3.7",
        journal: Path | None = None,
        pace: float = 1.0,
        save_instances: bool = True,
        delete_refusal: float | None = None,
        qrcode_limit: int = 30,
        global_webhook: str | None = None,
        expose_token: bool = False,
        webhook_attempts: int = 10,
        seed: int = 0,
    ) -> None:
        if version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(VERSIONS)}, not {version}")
        if not api_key:
            raise ValueError("api_key must not be empty")
        self.api_key = api_key
        self.url = ""
        self.journal = Journal(journal)
        settings = Settings(
            api_key=api_key,
            version=version,
            pace=pace,
            save_instances=save_instances,
            delete_refusal=delete_refusal,
            qrcode_limit=qrcode_limit,
            global_webhook=global_webhook,
            expose_token=expose_token,
            webhook_attempts=webhook_attempts,
            seed=seed,
        )
        self._world = World(settings, self.journal)
        self._reception = Reception(self._world, self._act, self._die)
        self._door = Door(host, port)
        self._backup: dict[str, Row] = {}

    # -- lifetime

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. ``url`` is known afterwards. OSError when the port is in use."""

        async def under_control(request: web.BaseRequest) -> web.StreamResponse:
            return await control_api.handle(self, request)

        await self._door.open(self._reception.handle, under_control, control_api.PREFIX)
        self.url = self._world.url = self._door.url

    async def stop(self) -> None:
        """Close everything, requests under way included; nothing keeps running."""
        self._reception.stop()
        await self._door.close()
        await self._world.stop()
        self.journal.close()

    # -- faults

    def arm(
        self,
        mode: str,
        *,
        operation: str | None = None,
        name: str | None = None,
        times: int | None = 1,
        **parameters: Any,
    ) -> Armed:
        """Let ``mode`` strike the next ``times`` matching requests (None: all).

        ``operation`` None means every operation of the mode; ``name`` may be a glob.
        """
        return self.arm_with(mode, operation, name, times, parameters)

    def arm_with(
        self,
        mode: str,
        operation: str | None,
        name: str | None,
        times: int | None,
        parameters: Mapping[str, object],
    ) -> Armed:
        return self._world.faults.arm(mode, operation, name, times, parameters)

    def disarm(self) -> None:
        """Disarm all faults; the counts in ``fired`` stay."""
        self._world.faults.disarm()

    @property
    def armed(self) -> list[Armed]:
        return list(self._world.faults.armed)

    @property
    def fired(self) -> dict[str, int]:
        """How often each mode has really struck."""
        return dict(self._world.faults.fired)

    async def _act(self, armed: Armed, call: Call) -> None:
        given, name = armed.parameters, call.known_as
        match armed.mode:
            case "restart":
                await self.restart(warmup=given["warmup"], down=given["down"])
            case "restore":
                await self.restore()
            case "foreign" if name is not None:
                self.foreign(name)
            case "drop" if name in self._world.memory or name in self._world.rows:
                self.drop(str(name))

    async def _die(self, death: Died) -> None:
        await self.restart(warmup=death.warmup, down=death.down)

    # -- WhatsApp

    def pair(
        self, name: str, jid: str = "5511999990000", profile_name: str = "Clínica Sol"
    ) -> None:
        """The phone ``jid`` scans the QR; the instance opens, and a webhook is sent."""
        whatsapp.pair(self._world, self._instance(name), jid, profile_name)

    def logout(self, name: str, code: int = 401) -> None:
        """WhatsApp ends the connection with ``code``: 401, 402, 403, 406 are final, others pass."""
        whatsapp.lose(self._world, self._instance(name), code)

    def hang_up(self, name: str, code: int = 428) -> None:
        """The connection ends with ``code``, and the server does not reconnect."""
        admin.hang_up(self._world, self._instance(name), code)

    def whatsapp(self, *, reachable: bool) -> None:
        """Make WhatsApp unreachable for the server, or reachable again."""
        admin.set_reachable(self._world, reachable)

    # -- instances

    def foreign(
        self, name: str, *, integration: str = EVOLUTION, client_name: str | None = None
    ) -> str:
        """Replace any instance of this name by one of another owner; returns its id.

        Another ``client_name`` makes it another deployment's: not listed, but the name is in use.
        """
        row = admin.put_foreign(self._world, name, integration=integration, client_name=client_name)
        return row.id

    def put(
        self,
        name: str,
        *,
        token: str | None = None,
        integration: str = BAILEYS,
        phone: str | None = None,
    ) -> str:
        """An instance made by older code, connected if it has a ``phone``; returns its id."""
        row = admin.put(self._world, name, token=token, integration=integration, phone=phone)
        return row.id

    def drop(self, name: str) -> None:
        """Remove an instance at once, both halves."""
        self._must_exist(name)
        admin.take_away(self._world, name, BY_HAND)

    def half_delete(self, name: str, *, keep: str = "row") -> None:
        """Leave one half: the ``row`` (a ghost) or the ``memory`` entry."""
        self._must_exist(name)
        if keep not in ("row", "memory"):
            raise ValueError(f"keep must be row or memory, not {keep}")
        admin.take_away(self._world, name, BY_HAND, keep=keep)

    def lose(self, name: str, row: str) -> None:
        """Delete one row of an instance: ``webhook`` or ``settings``."""
        if row not in ("webhook", "settings"):
            raise ValueError(f"row must be webhook or settings, not {row}")
        admin.lose(self._world, self._row(name), row)

    def set_webhook(self, name: str, **changes: object) -> None:
        """Change fields of an instance's webhook row: ``url``, ``events``, ``enabled``…"""
        row = self._row(name)
        row.webhook = {**(row.webhook or webhook_row(row.id, _NO_WEBHOOK)), **changes}

    def live(self) -> dict[str, View]:
        """The instances in the process's memory."""
        return views.live(self._world)

    def rows(self) -> dict[str, View]:
        """The instances in the database."""
        return views.rows(self._world)

    def _instance(self, name: str) -> Instance:
        instance = self._world.memory.get(name)
        if instance is None:
            raise LookupError(f"there is no instance {name!r} in memory")
        return instance

    def _row(self, name: str) -> Row:
        row = self._world.rows.get(name)
        if row is None:
            raise LookupError(f"there is no row of an instance {name!r}")
        return row

    def _must_exist(self, name: str) -> None:
        if name not in self._world.memory and name not in self._world.rows:
            raise LookupError(f"there is no instance {name!r}")

    # -- process and database

    async def restart(self, *, warmup: float = 0.0, down: float = 0.0) -> None:
        """Crash and start again: requests, removals under way and webhook retries are lost.

        Connections are refused for ``down`` seconds; then HTTP answers, while the instances are
        loaded one by one over ``warmup`` seconds. Both are real seconds.
        """
        self._world.forget()
        await self._door.cut()
        if down:
            await self.refuse(down)
        admin.start_again(self._world, warmup)

    async def refuse(self, seconds: float) -> None:
        """Refuse new connections for this long (real seconds)."""
        await self._door.refuse(seconds)

    def database(self, *, away: float) -> None:
        """The database is down for so many seconds; 0: it is up again. Memory is not affected."""
        self._world.lose_database(away)

    def snapshot(self) -> None:
        """Back the database up."""
        self._backup = admin.copy_of(self._world)

    def dump(self) -> dict[str, Row]:
        """A copy of the database."""
        return admin.copy_of(self._world)

    def load(self, rows: Mapping[str, Row]) -> None:
        """Put these instances into the database, and load them as at a start."""
        admin.put_back(self._world, dict(rows))
        admin.start_again(self._world)

    async def restore(self) -> None:
        """Restore the last backup, followed by a restart."""
        admin.put_back(self._world, self._backup)
        await self.restart()
