"""What an answer of the Evolution server proves, written down as data.

Evolution has no idempotency key, its 201 can be false and its DELETE answers before deleting, so
an answer is only evidence. Each table is read from the top, and the first row that fits counts.
(All as observed on Evolution 2.3.6 and 2.3.7.)
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias, TypeVar

from evosaga.sagas.whatsapp.evolution.circuit_breaker import CallOutcome
from evosaga.sagas.whatsapp.evolution.models import (
    CreatedInstance,
    InstanceList,
    InstanceState,
    ListedInstance,
    QrCode,
    UnreadableList,
    Webhook,
    created_instance,
    error_message,
    instance_list,
    instance_state,
    qr_code,
    says_error,
    webhook,
)

UNREACHABLE: Final = "evolution_unreachable"
UNAVAILABLE: Final = "evolution_unavailable"
MISCONFIGURED: Final = "evolution_misconfigured"
BUSY: Final = "evolution_busy"
SERVER_UNKNOWN: Final = "server_unknown"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, or (status 0) what went wrong instead. ``text`` never holds a body.

    ``body`` is the parsed JSON, for this package alone: other code reads the properties. ``sent``
    False proves that nothing was sent. ``code`` names trouble that is not the caller's: of the
    connection, of the set-up, or an open circuit breaker. ``alien``: not an answer of Evolution
    but, say, a proxy's page. ``meaning``: what that says of the set-up, with the cure. ``null``:
    the body is ``null``, so what was asked for does not exist.
    """

    status: int
    body: object
    text: str
    sent: bool = True
    retry_after: float | None = None
    code: str = ""
    alien: bool = False
    meaning: str = ""
    null: bool = False

    @property
    def told(self) -> str:
        """What came back, and what it means where a person must mend something."""
        return f"{self.text}: {self.meaning}" if self.meaning else self.text

    @property
    def tried(self) -> bool:
        """False when the circuit breaker kept the call from being sent."""
        return self.sent or self.code == UNREACHABLE

    @property
    def instance(self) -> InstanceState | None:
        return instance_state(self.body)

    @property
    def created(self) -> CreatedInstance | None:
        return created_instance(self.body)

    @property
    def instances(self) -> InstanceList | None:
        return instance_list(self.body)

    @property
    def qr_code(self) -> QrCode | None:
        return qr_code(self.body)

    @property
    def webhook(self) -> Webhook | None:
        return webhook(self.body)

    @property
    def message(self) -> str | None:
        """Evolution's words for what went wrong."""
        return error_message(self.body)

    @property
    def failed(self) -> bool:
        """Whether it reports a failure, which may come as a 200."""
        return self.status != 200 or says_error(self.body)

    def listed(self, name: str) -> ListedInstance | None:
        """The listed instance of that name; None proves that there is none.

        Raises ``UnreadableList``.
        """
        if (found := self.instances) is None:
            raise UnreadableList("Evolution's answer is no list")
        return found.find(name)


class Operation(StrEnum):
    """What the server can be asked."""

    CREATE = "create"
    DELETE = "delete"
    CONNECT = "connect"
    STATE = "state"
    """Memory's view of one instance, asked with its own token."""
    OWN = "own row"
    """The rows that have this token, asked with it."""
    NAMED = "named row"
    """One instance by its name, asked with the global key."""
    LIST = "list"
    """Every row, asked with the global key."""
    WEBHOOK = "webhook"
    """The row of one instance's webhook, asked with its own token."""
    SET_WEBHOOK = "set webhook"
    SET_SETTINGS = "set settings"


class Verdict(StrEnum):
    LANDED = "landed"
    REJECTED = "rejected"
    """Refused, and nothing is under way because of it."""
    NOT_SENT = "not sent"
    AMBIGUOUS = "ambiguous"
    """It may have happened, or may happen yet: look."""
    OUTAGE = "outage"
    """Unavailable (503): wait, but look first, since a proxy may have answered."""
    MISCONFIGURED = "misconfigured"
    """A person must mend the set-up (wrong key, no licence, wrong URL, a proxy that forbids the
    call); sagas wait meanwhile."""
    BUSY = "busy"
    """Asked to come back later (429)."""


class Presence(StrEnum):
    """What a look at an instance found."""

    MINE = "mine"
    FOREIGN = "foreign"
    ABSENT = "absent"
    HALF = "half"
    """One of Evolution's two views has it, the other not."""
    UNKNOWN = "unknown"


Status: TypeAlias = int | range
_ANY: Final = range(1000)
_REDIRECTS: Final = range(300, 400)

# A 400 to POST /instance/create is rarely a plain refusal: any exception inside a create answers
# 400 and removes *by name* a moment later.
CREATE_RULES: Final[tuple[tuple[Status, str, Verdict], ...]] = (
    (201, "", Verdict.LANDED),
    (400, "invalid integration", Verdict.REJECTED),
    (400, "does not match pattern", Verdict.REJECTED),
    (400, "is required", Verdict.REJECTED),
    (400, "cannot be empty", Verdict.REJECTED),
    (400, "invalid proxy", Verdict.REJECTED),
    (401, "", Verdict.MISCONFIGURED),
    (403, "already in use", Verdict.AMBIGUOUS),
    (403, "", Verdict.MISCONFIGURED),
    (404, "", Verdict.MISCONFIGURED),
    (_REDIRECTS, "", Verdict.MISCONFIGURED),
    (range(413, 416), "", Verdict.REJECTED),
    (429, "", Verdict.BUSY),
    (500, "not allowed by cors", Verdict.MISCONFIGURED),
    (503, "license_required", Verdict.MISCONFIGURED),
    (503, "", Verdict.OUTAGE),
    (_ANY, "", Verdict.AMBIGUOUS),
)

# A 200 to DELETE /instance/delete means that a removal will follow, a 404 that memory has it not
# (any more). A 400 is 2.3.7's quirk: it has logged a live instance out, and removes nothing.
DELETE_RULES: Final[tuple[tuple[Status, str, Verdict], ...]] = (
    (200, '"error": true', Verdict.AMBIGUOUS),
    (200, "", Verdict.LANDED),
    (404, "", Verdict.LANDED),
    (400, "", Verdict.REJECTED),
    (403, "", Verdict.MISCONFIGURED),
    (_REDIRECTS, "", Verdict.MISCONFIGURED),
    (429, "", Verdict.BUSY),
    (500, "not allowed by cors", Verdict.MISCONFIGURED),
    (503, "license_required", Verdict.MISCONFIGURED),
    (503, "", Verdict.OUTAGE),
    (_ANY, "", Verdict.AMBIGUOUS),
)

# A 401 or 404 to an instance's own token is about the instance. To the global key, or on a route
# that always exists, it is about the server: the wrong key, the wrong URL. A 403 is Evolution's
# word for a name in use, and else only a proxy's or a missing key's.
HEALTH: Final[tuple[tuple[frozenset[Operation], Status, str, CallOutcome], ...]] = (
    (frozenset(Operation), 0, "", CallOutcome.SICK),
    (frozenset(Operation), 408, "", CallOutcome.SICK),
    (frozenset(Operation), 425, "", CallOutcome.SICK),
    (frozenset(Operation), 500, "not allowed by cors", CallOutcome.MISCONFIGURED),
    (frozenset(Operation), 503, "license_required", CallOutcome.MISCONFIGURED),
    (frozenset(Operation), range(500, 1000), "", CallOutcome.SICK),
    (frozenset(Operation), _REDIRECTS, "", CallOutcome.MISCONFIGURED),
    (frozenset({Operation.CREATE}), 403, "already in use", CallOutcome.WELL),
    (frozenset(Operation), 403, "", CallOutcome.MISCONFIGURED),
    (
        frozenset({Operation.CREATE, Operation.LIST, Operation.NAMED}),
        401,
        "",
        CallOutcome.MISCONFIGURED,
    ),
    (frozenset({Operation.CREATE, Operation.LIST}), 404, "", CallOutcome.MISCONFIGURED),
    (frozenset(Operation), _ANY, "", CallOutcome.WELL),
)


def classify_create(answer: Answer) -> Verdict:
    """What an answer to a create proves."""
    return _verdict(CREATE_RULES, answer)


def classify_delete(answer: Answer) -> Verdict:
    """What an answer to a delete proves. That it is gone only a look can tell."""
    return _verdict(DELETE_RULES, answer)


def health(asked: Operation, answer: Answer) -> CallOutcome:
    """What an answer says about the server, whatever it says about the instance."""
    if answer.alien:
        return CallOutcome.MISCONFIGURED
    rows = ((status, words, found) for who, status, words, found in HEALTH if asked in who)
    return _first(rows, answer) or CallOutcome.WELL


_Found = TypeVar("_Found")


def _verdict(table: Iterable[tuple[Status, str, Verdict]], answer: Answer) -> Verdict:
    if not answer.sent:
        return Verdict.NOT_SENT
    if answer.alien:
        # A proxy that refuses has not handed the call on; one that says "done" may have.
        well = 200 <= answer.status < 300
        return Verdict.AMBIGUOUS if well else Verdict.MISCONFIGURED
    return _first(table, answer) or Verdict.AMBIGUOUS


def _first(rows: Iterable[tuple[Status, str, _Found]], answer: Answer) -> _Found | None:
    got = answer.status
    for status, words, found in rows:
        fits = got == status if isinstance(status, int) else got in status
        if fits and words_in(answer.body, words):
            return found
    return None


def words_in(body: object, words: str) -> bool:
    """Whether the body says these words, which are in small letters, anywhere."""
    if not words or body is None or isinstance(body, InstanceList):
        return not words
    return words in json.dumps(body).lower()
