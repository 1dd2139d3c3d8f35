"""The checks before every operation, in Evolution's order: exists -> name in use -> key.

So a 404 or a 403 proves nothing about the key. An error's message has one of three shapes: plain
text (401, 500, broken JSON), a list (403, 404, most 400) and a list in a list (schema).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.local.evolution.fault_modes import OPERATIONS
from evosaga.orchestrator.local.evolution.journal import Why, fingerprint

if TYPE_CHECKING:
    from evosaga.orchestrator.local.evolution.instances import World

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
NO_DATABASE = "Invalid `prisma` invocation:\n\n\nCan't reach database server"
NO_PARENT_ROW = (
    "Invalid `prisma` invocation:\n\n\nForeign key constraint violated on the constraint: "
    "`Setting_instanceId_fkey`"
)
OBJECT_OBJECT = "[object Object]"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: ``body`` is JSON, or bytes sent unchanged; status 0 means that there is none.

    ``cut_after`` drops the connection after so many bytes (0: a reset before the first), ``hang``
    never sends any.
    """

    status: int
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hang: bool = False


class Refused(Exception):
    """The operation ends here, with this error answer."""

    def __init__(self, status: int, message: object) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    @property
    def reply(self) -> Reply:
        return error(self.status, self.message)


class Died(Exception):
    """The process ends in the middle of a request. Both values are real seconds."""

    def __init__(self, down: float, warmup: float) -> None:
        super().__init__(down, warmup)
        self.down = down
        self.warmup = warmup


def error(status: int, message: object, *, reason: str | None = None) -> Reply:
    body = {
        "status": status,
        "error": reason or REASONS.get(status, "Internal Server Error"),
        "response": {"message": message},
    }
    return Reply(status, body)


def failed_with_200() -> Reply:
    """Some failures of the real server are a 200 with this body."""
    return Reply(200, {"error": True, "message": OBJECT_OBJECT})


@dataclass(slots=True)
class Call:
    """A request in progress, and its result."""

    sequence: int
    received_at: float
    method: str
    path: str
    operation: str  # "" for an unknown route
    name: Any = None  # the JSON value sent as instanceName; None when there was none
    named: bool = False
    key: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    broken: str | None = None  # the error in the JSON
    key_kind: str = "none"
    faults: list[str] = field(default_factory=list)
    stall: float = 0.0  # seconds by which a fault delays the removal that follows
    applied: str | None = None
    instance_id: str | None = None
    token: str | None = None
    database_lost: bool = False  # in the middle of this request, and until its end

    @property
    def known_as(self) -> str | None:
        return self.name if isinstance(self.name, str) else None

    @property
    def key_hash(self) -> str | None:
        return fingerprint(self.key) if self.key and self.key_kind != "global" else None

    def why(self, what: str) -> Why:
        return Why(what, self.sequence, self.key_kind, self.key_hash)


#: The operations whose route carries an instance's name.
ON_AN_INSTANCE = frozenset(OPERATIONS) - {"root", "create", "fetch", "webhook"}


def check(world: "World", call: Call) -> None:
    """Raise Refused where the real server's guards would."""
    if call.operation in ON_AN_INSTANCE and not _exists(world, call):
        raise Refused(404, [f'The "{call.name}" instance does not exist'])
    if call.operation == "create":
        _refuse_a_name_in_use(world, call)
    if call.operation != "root" and not _key_opens(world, call):
        raise Refused(401, "Unauthorized")


def kind_of_key(world: "World", call: Call) -> str:
    """For the journal: ``instance`` is the present or a former token of the instance concerned."""
    if not call.key:
        return "none"
    if call.key == world.settings.api_key:
        return "global"
    row = world.rows.get(call.name) if call.known_as is not None else None
    if row is not None:
        return "instance" if row.token == call.key else "wrong"
    return "instance" if call.key in world.tokens_ever else "wrong"


def _exists(world: "World", call: Call) -> bool:
    """With CACHE_REDIS_SAVE_INSTANCES the database is not read: a ghost row does not exist."""
    if call.name in world.memory:
        return True
    if world.settings.save_instances:
        return False
    world.ask_database(call)
    return call.name in world.rows


def _refuse_a_name_in_use(world: "World", call: Call) -> None:
    if not call.named:  # undefined: without a name the query has no filter, and any row matches
        if not world.settings.save_instances:
            world.ask_database(call)
            if world.rows:
                raise Refused(403, ['This name "undefined" is already in use.'])
        return
    if not isinstance(call.name, str):
        raise Refused(500, "Invalid `prisma` invocation:\n\n\nArgument `name`: Invalid value")
    if _exists(world, call):
        raise Refused(403, [f'This name "{call.name}" is already in use.'])


def _key_opens(world: "World", call: Call) -> bool:
    """An instance's token is compared with its *row*, so a half without one answers 401."""
    if world.faults.bend("401", call) is not None:
        return False
    if call.key == world.settings.api_key:
        return True
    if not call.key or call.operation == "create" or world.database_is_down(call):
        return False
    if call.operation == "fetch":
        return any(row.token == call.key for row in world.rows.values())
    row = world.rows.get(call.name)
    return row is not None and row.token == call.key
