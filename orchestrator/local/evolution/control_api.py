"""The control routes, ``/__control__/…``: all methods of the simulator, over HTTP and in JSON.

Bad input is answered with 400 and one sentence, ``{"error": "…"}``, and changes nothing.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from evosaga.orchestrator.local.evolution.fault_modes import MODES
from evosaga.orchestrator.local.evolution.instances import EVOLUTION

if TYPE_CHECKING:
    from evosaga.orchestrator.local.evolution.server import SimulatedEvolution

PREFIX = "/__control__/"


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a control request: its JSON object, or the query of a GET."""

    fields: dict[str, Any]

    def name(self, field: str = "name") -> str:
        value = self.fields.get(field)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{field} must be a text")
        return value

    def text(self, field: str, default: str | None = None) -> str | None:
        value = self.fields.get(field, default)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{field} must be a text")
        return value

    def texts(self, *fields: str) -> dict[str, str]:
        """Those of the fields that were given."""
        return {field: self.name(field) for field in fields if field in self.fields}

    def number(self, field: str, default: float) -> float:
        value = self.fields.get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            raise ValueError(f"{field} must be a number, 0 or more")
        return value

    def times(self) -> int | None:
        value = self.fields.get("times", 1)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError("times must be a whole number, or null for ever")
        return value

    def flag(self, field: str) -> bool:
        value = self.fields.get(field)
        if not isinstance(value, bool):
            raise ValueError(f"{field} must be true or false")
        return value


async def handle(server: "SimulatedEvolution", request: web.BaseRequest) -> web.Response:
    path = request.raw_path.partition("?")[0].removeprefix(PREFIX).rstrip("/")
    route = _ROUTES.get((request.method, path))
    if route is None:
        known = ", ".join(f"{method} {PREFIX}{name}" for method, name in _ROUTES)
        return _json({"error": f"there is no such control route; there are {known}"}, 404)
    fields, work = route
    try:
        asked = _asked(await request.read() or b"{}", dict(request.rel_url.query), fields)
        return _json(await work(server, asked))
    except (ValueError, LookupError) as problem:
        return _json({"error": str(problem.args[0])}, 400)


def _asked(raw: bytes, query: dict[str, str], known: frozenset[str] | None) -> Asked:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("the body must be JSON") from None
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    fields = {**query, **body}
    if known is not None and (unknown := sorted(fields.keys() - known)):
        raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return Asked(fields)


def _json(body: object, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


async def _arm(server: "SimulatedEvolution", asked: Asked) -> object:
    """A mode's parameters are given beside the other fields, or in an object ``parameters``."""
    own = {"mode", "operation", "name", "times", "parameters"}
    nested = asked.fields.get("parameters", {})
    if not isinstance(nested, dict):
        raise ValueError("parameters must be a JSON object")
    beside = {field: value for field, value in asked.fields.items() if field not in own}
    armed = server.arm_with(
        asked.name("mode"),
        asked.text("operation"),
        asked.text("name"),
        asked.times(),
        {**beside, **nested},
    )
    return armed.as_dict()


async def _disarm(server: "SimulatedEvolution", asked: Asked) -> object:
    server.disarm()
    return await _faults(server, asked)


async def _faults(server: "SimulatedEvolution", asked: Asked) -> object:
    return {"armed": [armed.as_dict() for armed in server.armed], "fired": server.fired}


async def _modes(server: "SimulatedEvolution", asked: Asked) -> object:
    return {
        mode: {
            "moment": it.moment,
            "story": it.story,
            "operations": sorted(it.operations),
            "parameters": list(it.parameters),
        }
        for mode, it in MODES.items()
    }


async def _pair(server: "SimulatedEvolution", asked: Asked) -> object:
    server.pair(asked.name(), **asked.texts("jid", "profile_name"))
    return _views(server)


async def _logout(server: "SimulatedEvolution", asked: Asked) -> object:
    server.logout(asked.name(), int(asked.number("code", 401)))
    return _views(server)


async def _hang_up(server: "SimulatedEvolution", asked: Asked) -> object:
    server.hang_up(asked.name(), int(asked.number("code", 428)))
    return _views(server)


async def _whatsapp(server: "SimulatedEvolution", asked: Asked) -> object:
    server.whatsapp(reachable=asked.flag("reachable"))
    return _views(server)


async def _foreign(server: "SimulatedEvolution", asked: Asked) -> object:
    integration, client_name = asked.text("integration"), asked.text("client_name")
    server.foreign(asked.name(), integration=integration or EVOLUTION, client_name=client_name)
    return _views(server)


async def _put(server: "SimulatedEvolution", asked: Asked) -> object:
    """One older instance, or many: ``{"instances": [{"name": …}, …]}``."""
    many = asked.fields.get("instances", [asked.fields])
    if not isinstance(many, list) or not all(isinstance(one, dict) for one in many):
        raise ValueError("instances must be a list of JSON objects")
    known = {"name", "token", "integration", "phone"}
    for one in map(Asked, many):
        if unknown := sorted(one.fields.keys() - known):
            raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(sorted(known))}")
        server.put(one.name(), **one.texts("token", "integration", "phone"))
    return {"put": len(many)}


async def _drop(server: "SimulatedEvolution", asked: Asked) -> object:
    server.drop(asked.name())
    return _views(server)


async def _half_delete(server: "SimulatedEvolution", asked: Asked) -> object:
    server.half_delete(asked.name(), **asked.texts("keep"))
    return _views(server)


async def _lose(server: "SimulatedEvolution", asked: Asked) -> object:
    server.lose(asked.name(), asked.name("row"))
    return _views(server)


async def _database(server: "SimulatedEvolution", asked: Asked) -> object:
    server.database(away=asked.number("away", 0))
    return _views(server)


async def _restart(server: "SimulatedEvolution", asked: Asked) -> object:
    await server.restart(warmup=asked.number("warmup", 0), down=asked.number("down", 0))
    return _views(server)


async def _refuse(server: "SimulatedEvolution", asked: Asked) -> object:
    await server.refuse(asked.number("seconds", 1))
    return _views(server)


async def _snapshot(server: "SimulatedEvolution", asked: Asked) -> object:
    server.snapshot()
    return _views(server)


async def _restore(server: "SimulatedEvolution", asked: Asked) -> object:
    await server.restore()
    return _views(server)


async def _instances(server: "SimulatedEvolution", asked: Asked) -> object:
    return _views(server)


async def _journal(server: "SimulatedEvolution", asked: Asked) -> object:
    """``?since=N`` leaves out the first N entries."""
    since = asked.fields.get("since", "0")
    if not str(since).isdecimal():
        raise ValueError("since must be a number of entries")
    return [entry.as_dict() for entry in server.journal.entries[int(since) :]]


def _views(server: "SimulatedEvolution") -> dict[str, object]:
    return {
        "live": [asdict(view) for view in server.live().values()],
        "rows": [asdict(view) for view in server.rows().values()],
    }


Work = Callable[["SimulatedEvolution", Asked], Awaitable[object]]

#: The fields a route knows (None: the mode decides), and what it does.
_ROUTES: dict[tuple[str, str], tuple[frozenset[str] | None, Work]] = {
    ("POST", "faults"): (None, _arm),
    ("DELETE", "faults"): (frozenset(), _disarm),
    ("GET", "faults"): (frozenset(), _faults),
    ("GET", "modes"): (frozenset(), _modes),
    ("POST", "pair"): (frozenset({"name", "jid", "profile_name"}), _pair),
    ("POST", "logout"): (frozenset({"name", "code"}), _logout),
    ("POST", "hang-up"): (frozenset({"name", "code"}), _hang_up),
    ("POST", "whatsapp"): (frozenset({"reachable"}), _whatsapp),
    ("POST", "foreign"): (frozenset({"name", "integration", "client_name"}), _foreign),
    ("POST", "put"): (frozenset({"name", "token", "integration", "phone", "instances"}), _put),
    ("POST", "drop"): (frozenset({"name"}), _drop),
    ("POST", "half-delete"): (frozenset({"name", "keep"}), _half_delete),
    ("POST", "lose"): (frozenset({"name", "row"}), _lose),
    ("POST", "database"): (frozenset({"away"}), _database),
    ("POST", "restart"): (frozenset({"warmup", "down"}), _restart),
    ("POST", "refuse"): (frozenset({"seconds"}), _refuse),
    ("POST", "snapshot"): (frozenset(), _snapshot),
    ("POST", "restore"): (frozenset(), _restore),
    ("GET", "instances"): (frozenset(), _instances),
    ("GET", "journal"): (frozenset({"since"}), _journal),
}
