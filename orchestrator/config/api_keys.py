"""API keys as an operator writes them: ``name:key[:organization_id]``, comma separated."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

SHORTEST: Final = 16
"""Characters; a shorter key is refused, since it can be guessed by asking."""
SHORT: Final = 24
"""Keys below so many characters can perhaps be guessed; the doctor says so."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. The key itself is not kept, only its SHA-256."""

    name: str
    digest: bytes
    organization_id: UUID | None
    short: bool = False


def digest(key: str) -> bytes:
    """What is compared: hashes have one length, and comparing them tells nothing of the key."""
    return hashlib.sha256(key.encode()).digest()


def read_api_keys(text: str) -> tuple[ApiKey, ...]:
    """Understand ``EVOSAGA_API_KEYS``. Raises ``ValueError`` that tells the place, never a key."""
    keys = [_read(number, entry.strip()) for number, entry in _entries(text)]
    if not keys:
        raise ValueError("holds no key; write name:key or name:key:organization_id")
    for field, what in (("name", "name"), ("digest", "key")):
        seen = [getattr(key, field) for key in keys]
        if len(set(seen)) != len(seen):
            raise ValueError(f"the same {what} is given twice")
    return tuple(keys)


def _entries(text: str) -> list[tuple[int, str]]:
    return [(n, entry) for n, entry in enumerate(text.split(","), 1) if entry.strip()]


def _read(number: int, entry: str) -> ApiKey:
    name, *rest = (part.strip() for part in entry.split(":"))
    if not 1 <= len(rest) <= 2:
        raise ValueError(f"entry {number} must read name:key or name:key:organization_id")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", name):
        raise ValueError(f"entry {number}: a name is 1 to 40 letters, digits, dots, _ and -")
    if not re.fullmatch(r"[!-~]+", rest[0]):
        raise ValueError(f"entry {number} ({name}): a key is visible ASCII without spaces")
    if len(rest[0]) < SHORTEST:
        said = f"a key has at least {SHORTEST} characters; make one: openssl rand -hex 32"
        raise ValueError(f"entry {number} ({name}): {said}")
    organization = None
    if len(rest) == 2:
        try:
            organization = UUID(rest[1])
        except ValueError:
            raise ValueError(f"entry {number} ({name}): the organization must be a UUID") from None
    return ApiKey(name, digest(rest[0]), organization, len(rest[0]) < SHORT)
