"""The registry of fault modes.

A mode strikes at one moment of a request:

    act      another actor acts first (another owner takes the name, the server restarts)
    delay    the request is delayed, then continues
    before   it is answered, or dropped, and nothing was done
    bend     the operation behaves differently (a removal that stalls, a database that is down)
    after    it is done, and then the answer is spoiled
    late     it is answered as lost now, and done later

All acts and delays apply; of ``before``, ``after`` and ``late`` the first that was armed decides.
Parameters called ``seconds`` are real seconds: ``pace`` does not scale them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, TypeGuard, assert_never

from evosaga.orchestrator.local.evolution.lists import SHAPES

Moment = Literal["act", "delay", "before", "bend", "after", "late"]

OPERATIONS = (
    "root",
    "create",
    "fetch",
    "connectionState",
    "connect",
    "restart",
    "logout",
    "delete",
    "webhook_set",
    "webhook_find",
    "settings_set",
    "settings_find",
    "webhook",  # the deliveries that go out
)
_WEBHOOK = frozenset({"webhook"})
_API = frozenset(OPERATIONS) - _WEBHOOK
_BUSINESS = _API - {"root"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a mode besides place and count; ``choices`` lists the only valid values."""

    kind: Literal["number", "status", "text", "anything"]
    default: object
    choices: tuple[str, ...] = ()


def _number(default: float | None) -> Parameter:
    return Parameter("number", default)


def _status(default: int) -> Parameter:
    return Parameter("status", default)


def _text(default: str, *choices: str) -> Parameter:
    return Parameter("text", default, choices)


@dataclass(frozen=True, slots=True)
class Mode:
    """One fault: when, where (by default), and with which parameters."""

    moment: Moment
    story: str
    operations: frozenset[str] = _BUSINESS
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


_CREATE, _DELETE, _FETCH = frozenset({"create"}), frozenset({"delete"}), frozenset({"fetch"})
_QR = frozenset({"create", "connect"})

MODES: dict[str, Mode] = {
    # another actor acts first
    "foreign": Mode("act", "a stranger creates the name just before", _BUSINESS - _FETCH),
    "drop": Mode("act", "the instance is removed by hand just before", _BUSINESS - _CREATE),
    "restart": Mode(
        "act",
        "the server restarts: this request and all others under way are cut",
        parameters={"warmup": _number(0), "down": _number(0)},
    ),
    "restore": Mode("act", "the database is restored from the last snapshot, with a restart"),
    # the request is delayed
    "slow": Mode("delay", "answered so much later", parameters={"seconds": _number(1)}),
    # nothing is done
    "5xx_before": Mode("before", "5xx, nothing done", parameters={"status": _status(500)}),
    "reject": Mode(
        "before",
        "a plain refusal, nothing done",
        parameters={"status": _status(400), "message": _text("Bad Request")},
    ),
    "429": Mode(
        "before",
        "too many requests; retry_after is a number, a text as it is, or null for no such header",
        parameters={"retry_after": Parameter("anything", 1)},
    ),
    "proxy": Mode(
        "before",
        "a proxy, a firewall or a login page answers in its place, nothing done",
        _API,
        {
            "status": _status(403),
            "body": _text("html", "html", "json", "text", "empty"),
            "retry_after": Parameter("anything", None),
        },
    ),
    "no_key": Mode("before", "403 as if the header apikey had been lost on the way"),
    "redirect": Mode(
        "before",
        "sent elsewhere",
        parameters={"status": _status(302), "location": _text("http://127.0.0.1:9/elsewhere")},
    ),
    "licence": Mode(
        "before",
        "503 of a 2.4.0 that was not activated; GET / still answers",
        parameters={"register_url": _text("https://evolution.example/manager/register")},
    ),
    "cors": Mode("before", "500 that CORS_ORIGIN causes for clients without an Origin"),
    "ok200_error": Mode("before", "200 with an error in it, nothing done"),
    "refuse": Mode("before", "the connection is reset, nothing done", _API),
    "hang_before": Mode("before", "no answer ever, nothing done", _API),
    # done differently
    "401": Mode("bend", "the key is not the right one any more; 404 and 403 still come first"),
    "db_down": Mode("bend", "Postgres is down: DELETE says 200 and deletes nothing"),
    "db_lost": Mode(
        "bend",
        "Postgres is lost right behind this row of a create, for so long (0: for this create)",
        _CREATE,
        {"after": _text("instance", "nothing", "instance", "webhook"), "seconds": _number(0)},
    ),
    "kill": Mode(
        "bend",
        "the process dies right behind this row of a create, and starts again",
        _CREATE,
        {
            "after": _text("instance", "instance", "webhook", "settings"),
            "down": _number(0),
            "warmup": _number(0),
        },
    ),
    "no_qr": Mode("bend", 'no QR in time: {"count":0}', _QR, {"seconds": _number(None)}),
    "400_async_remove": Mode(
        "bend",
        "created, then 400 and a removal by name that lands later",
        _CREATE,
        {"seconds": _number(0), "message": _text("Cannot read properties of undefined")},
    ),
    "create_race": Mode(
        "bend",
        "a rival creates the same name at the same moment: who gets the 201 is ours, theirs, or "
        "half (ours, but only the memory half lives on)",
        _CREATE,
        {"winner": _text("ours", "ours", "theirs", "half")},
    ),
    "delete_async": Mode("bend", "200 now, removed later", _DELETE, {"seconds": _number(1)}),
    "second_removal": Mode(
        "bend", "a second removal by name lands later", _DELETE, {"seconds": _number(1)}
    ),
    "half_deleted": Mode("bend", "200, but the row stays behind", _DELETE),
    "delete_400": Mode("bend", "logged out, but 400 [object Object]: the quirk of 2.3.7", _DELETE),
    "list_partial": Mode("bend", "part of the list", _FETCH, {"keep": _number(0.5)}),
    "list_empty": Mode("bend", "an empty list", _FETCH),
    "list_shape": Mode(
        "bend",
        "elements (the names that fit) without token or name, or as 1.x lists them",
        _FETCH,
        {"shape": _text("no_token", *SHAPES), "only": _text("*")},
    ),
    "webhook_lost": Mode("bend", "the event is never delivered", _WEBHOOK),
    "webhook_twice": Mode("bend", "the event is delivered twice", _WEBHOOK),
    "webhook_late": Mode("bend", "delivered later", _WEBHOOK, {"seconds": _number(1)}),
    # done, and then the answer is spoiled
    "slow_after": Mode("after", "done, answered later", parameters={"seconds": _number(1)}),
    "5xx_after": Mode("after", "done, answered with 5xx", parameters={"status": _status(500)}),
    "html502": Mode("after", "done, a proxy's HTML answers", parameters={"status": _status(502)}),
    "cut": Mode(
        "after",
        "done, the connection dies after so many bytes (0: reset before the first)",
        parameters={"bytes": _number(0)},
    ),
    "hang_after": Mode("after", "done, no answer ever"),
    "trunc": Mode("after", "done, the JSON stops half way", parameters={"bytes": _number(None)}),
    "huge": Mode("after", "done, an answer far too big", parameters={"size": _number(2_000_000)}),
    "wrong_body": Mode(
        "after", "done, another body", parameters={"body": Parameter("anything", None)}
    ),
    # done later
    "late": Mode(
        "late",
        "lost now (504, cut or hang), done later",
        parameters={"seconds": _number(1), "reply": _text("504", "504", "cut", "hang")},
    ),
}
ALIASES = {"hang": "hang_before", "state_503": "licence", "licence_503": "licence"}


def check_where(mode: str, operation: str | None) -> None:
    if operation is None:
        return
    if operation not in OPERATIONS:
        raise ValueError(f"unknown operation {operation!r}; there are {', '.join(OPERATIONS)}")
    possible = MODES[mode].operations
    # Where a mode is not limited to some operations, GET / is allowed, too.
    if operation not in (_API if possible == _BUSINESS else possible):
        raise ValueError(f"{mode} can't strike {operation}, only {', '.join(sorted(possible))}")


def checked_parameters(mode: str, given: Mapping[str, object]) -> dict[str, Any]:
    """The mode's parameters: what was given, checked, over the defaults."""
    known = MODES[mode].parameters
    if unknown := sorted(set(given) - set(known)):
        takes = ", ".join(known) or "none"
        raise ValueError(f"{mode} has no parameter {unknown[0]!r}; it takes {takes}")
    for name, value in given.items():
        if wrong := _wrong_with(known[name], value):
            raise ValueError(f"{mode}: {name} must be {wrong}")
    return {name: given.get(name, parameter.default) for name, parameter in known.items()}


def _wrong_with(parameter: Parameter, value: object) -> str | None:
    match parameter.kind:
        case "number" if value is None and parameter.default is None:
            return None
        case "number":
            return None if _is_number(value) and 0 <= value < inf else "a number, 0 or more"
        case "status":
            fine = isinstance(value, int) and 200 <= value <= 599
            return None if fine else "an HTTP status, 200 to 599"
        case "text" if parameter.choices:
            choices = ", ".join(parameter.choices)
            return None if value in parameter.choices else f"one of {choices}"
        case "text":
            return None if isinstance(value, str) else "a text"
        case "anything":
            return None
    assert_never(parameter.kind)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
