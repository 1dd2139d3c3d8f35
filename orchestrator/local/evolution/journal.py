"""The journal: every request, and every effect that really happened, at once or later.

An entry of kind ``request`` has the request, the answer, and what had changed by then. An entry of
kind ``applied`` is a change outside a request: the removal that DELETE only promised, a create that
was applied late, a call of the control routes. Folded in order, the entries with ``applied`` give
the existing instances.

No key and no token is ever written, only the first 16 hex digits of its SHA-256.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal


@lru_cache(maxsize=4096)
def fingerprint(secret: str) -> str:
    """The first 16 hex digits of the SHA-256 of a key or token."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of the journal. Times are UNIX seconds.

    ``sequence`` is assigned when a request arrives; entries are in the order of their completion.
    ``applied`` is ``created``, ``removed``, ``logged_out``, ``webhook_set``, … or None when nothing
    changed. ``token_hash`` is that of the instance concerned, ``key_hash`` that of the key used
    (None for the global key). ``caused_by`` is the sequence of the request that caused a later
    effect; ``cause`` says it in words.
    """

    sequence: int
    kind: Literal["request", "applied"]
    received_at: float
    answered_at: float | None = None
    method: str | None = None
    path: str | None = None
    operation: str | None = None
    name: str | None = None
    key_kind: str | None = None
    key_hash: str | None = None
    token_hash: str | None = None
    status: int | None = None
    fault: str | None = None
    applied: str | None = None
    instance_id: str | None = None
    cause: str | None = None
    caused_by: int | None = None

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = tuple(field.name for field in fields(JournalEntry))


@dataclass(frozen=True, slots=True)
class Why:
    """The cause of a later effect."""

    what: str
    caused_by: int | None = None
    key_kind: str | None = None
    key_hash: str | None = None


class Journal:
    """Kept in memory and, when a file is given, appended to it, one JSON object a line."""

    def __init__(self, path: Path | None = None) -> None:
        self.entries: list[JournalEntry] = []
        self._last = 0
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)  # a line survives a kill -9

    def next_sequence(self) -> int:
        self._last += 1
        return self._last

    def record(self, entry: JournalEntry) -> None:
        self.entries.append(entry)
        if self._file is not None:
            self._file.write(json.dumps(entry.as_dict()) + "\n")

    def landed(
        self,
        applied: str | None,
        why: Why,
        *,
        name: str | None,
        instance_id: str | None = None,
        token: str | None = None,
        operation: str | None = None,
        status: int | None = None,
    ) -> None:
        """Record a change outside the answer to a request."""
        now = time.time()
        self.record(
            JournalEntry(
                sequence=self.next_sequence(),
                kind="applied",
                received_at=now,
                answered_at=now,
                operation=operation,
                name=name,
                key_kind=why.key_kind,
                key_hash=why.key_hash,
                token_hash=fingerprint(token) if token else None,
                status=status,
                applied=applied,
                instance_id=instance_id,
                cause=why.what,
                caused_by=why.caused_by,
            )
        )

    def requests(self, operation: str | None = None, name: str | None = None) -> list[JournalEntry]:
        """The requests of one operation and/or one name, in the order they were answered."""
        return [
            entry
            for entry in self.entries
            if entry.kind == "request"
            and operation in (None, entry.operation)
            and name in (None, entry.name)
        ]

    def __iter__(self) -> Iterator[JournalEntry]:
        return iter(self.entries)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
