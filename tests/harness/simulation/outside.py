"""What the engine touches, in memory: an Evolution server with its two views, and a Redis.

As ``docs`` of the product and its simulated server have it, only without HTTP and without delays
that nobody chose: guards run exists -> name in use -> key; a removal goes by name and empties
memory first and the row second; a create that fails removes by name, too.
"""

import json
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.steps import routing_key

GLOBAL_KEY: Final = "the-global-key"
REMOVAL_LAG: Final = 0.02
CLEAN_UP_LAG: Final = 2.0
"""Seconds after a 400 to a create until it removes what bears the name."""
_NOBODY: Final = Context()
"""Nobody's context: the server goes on whichever worker dies."""


@dataclass(frozen=True)
class Landed:
    """Something that Evolution really did. ``what``: created, half created or removed.

    Half created is what a create leaves whose row is there already: the row stays as it was,
    memory has the name again, and one removal takes away both.
    """

    at: float
    what: str
    name: str
    token: str
    key: str
    """The key of the request that it came of."""


@dataclass
class Evolution:
    """One server: ``memory`` and ``rows`` hold the token of the instance of each name."""

    clock: Callable[[], float]
    later: Callable[..., Any]
    memory: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    journal: list[Landed] = field(default_factory=list)

    def live(self, token: str) -> bool:
        """Whether both views have an instance with this token."""
        return token in self.memory.values() and token in self.rows.values()

    def traces(self, token: str) -> bool:
        """Whether any view has it."""
        return token in self.memory.values() or token in self.rows.values()

    def put(self, name: str, token: str) -> None:
        """An instance that was there before, or that somebody makes by hand."""
        self.memory[name] = self.rows[name] = token

    def drop(self, name: str) -> None:
        """Somebody removes it by hand."""
        self._forget(name)
        self._remove(name, "")

    def serve(self, method: str, path: str, key: str, body: dict[str, Any]) -> Answer:
        parts = urlsplit(path)
        name = parts.path.rpartition("/")[2]
        match method, parts.path.split("/")[2]:
            case "POST", "create":
                return self._create(body["instanceName"], body["token"], key)
            case "DELETE", "delete":
                return self._guarded(name, key) or self._delete(name, key)
            case "GET", "connectionState":
                state = {"instance": {"instanceName": name, "state": "open"}}
                return self._guarded(name, key) or answer(200, state)
            case "GET", "fetchInstances":
                return self._list(parse_qs(parts.query).get("instanceName", [""])[0], key)
        raise AssertionError(f"nobody asks {method} {path}")

    def _guarded(self, name: str, key: str) -> Answer | None:
        if name not in self.memory:
            return refusal(404, [f'The "{name}" instance does not exist'])
        if key not in (GLOBAL_KEY, self.rows.get(name)):
            return refusal(401, "Unauthorized")
        return None

    def _create(self, name: str, token: str, key: str) -> Answer:
        if name in self.memory:
            return refusal(403, [f'This name "{name}" is already in use.'])
        if key != GLOBAL_KEY:
            return refusal(401, "Unauthorized")
        whole = name not in self.rows
        self.rows.setdefault(name, token)
        self.memory[name] = token
        self._note("created" if whole else "half created", name, token, key)
        if not whole:
            self.remove_later(name, key, REMOVAL_LAG)
            return refusal(400, ["Invalid `prisma` invocation"])
        return answer(201, {"instance": {"instanceName": name, "status": "open"}, "hash": token})

    def _delete(self, name: str, key: str) -> Answer:
        self.remove_later(name, key, REMOVAL_LAG)
        return answer(200, {"status": "SUCCESS", "error": False})

    def _list(self, name: str, key: str) -> Answer:
        rows = [{"name": n, "token": t} for n, t in self.rows.items() if key in (GLOBAL_KEY, t)]
        if key != GLOBAL_KEY and not rows:
            return refusal(401, "Unauthorized")
        if name and name not in self.memory:
            return refusal(404, [f'Instance "{name}" not found'])
        return answer(200, [row for row in rows if not name or row["name"] == name])

    def remove_later(self, name: str, key: str, after: float) -> None:
        """By name: whoever bears it then is removed."""
        self.later(after, self._forget, name, context=_NOBODY)
        self.later(after + REMOVAL_LAG, self._remove, name, key, context=_NOBODY)

    def clean_up(self, name: str) -> None:
        """What a create that failed half-way does a while after its 400."""
        self.remove_later(name, "", CLEAN_UP_LAG)

    def _forget(self, name: str) -> None:
        self.memory.pop(name, None)

    def _remove(self, name: str, key: str) -> None:
        token = self.rows.pop(name, None)
        if token is not None:
            self._note("removed", name, token, key)

    def _note(self, what: str, name: str, token: str, key: str) -> None:
        self.journal.append(Landed(self.clock(), what, name, token, key))


def answer(status: int, body: Any) -> Answer:
    return Answer(status, body, f"HTTP {status}")


def refusal(status: int, message: Any) -> Answer:
    return answer(status, {"status": status, "response": {"message": message}})


@dataclass
class Redis:
    """The keys of a Redis. Scripts are known by what they are, not read."""

    keys: dict[str, str] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    """What was published: channel and instance."""

    def eval(self, script: str, keys: tuple[str, ...], arguments: tuple[str, ...]) -> bytes:
        if script is routing_key._FILL:
            routing, seal, mark = keys
            if arguments[0] in self.keys.get(mark, "").split():
                return b"removed"
            self.keys[routing], self.keys[seal] = arguments[2], arguments[3]
            return b"filled"
        assert script is routing_key._REMOVE, "no other script is run by these sagas"
        for key in keys[1:]:
            self.keys.pop(key, None)
        marks = self.keys.get(keys[0], "").split()
        self.keys[keys[0]] = " ".join([*marks, arguments[0]])
        return b""

    def delete(self, key: str) -> int:
        return int(self.keys.pop(key, None) is not None)

    def publish(self, channel: str, message: str) -> int:
        self.told.append((channel, json.loads(message)["instance_name"]))
        return 1
