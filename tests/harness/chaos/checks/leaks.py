"""S17: no secret lies where anybody can read it, in any of the disguises that programs give it.

The run's keys are canaries: nothing else looks like them. They are searched as they are, in
base64, as a URL would carry them and as JSON would escape them, in tables, streams and logs.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.events.redis_clients import masters
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.harness.chaos.evidence import Evidence, Violation

_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")
_TOKEN: Final = re.compile(r"[0-9a-f]{64}")
_LONG: Final = re.compile(r"[0-9a-f]{64,}")
_SHORTEST: Final = 8


def s17(e: Evidence, secrets: Mapping[str, str]) -> Iterator[Violation]:
    """S17 No secret is in a table, a stream, a key or a log. ``secrets``: value to what it is."""
    # There are thousands of tokens and all look alike: what looks like one is looked up.
    tokens = {secret: what for secret, what in secrets.items() if _TOKEN.fullmatch(secret)}
    others = {
        disguise: what
        for secret, what in secrets.items()
        if len(secret) >= _SHORTEST and secret not in tokens
        for disguise in disguises(secret)
    }
    for place, text in e.texts.items():
        unwrapped = "\n".join(_unwrapped(text))
        found = set()
        for seen in (text, unwrapped):
            found |= {tokens[hit] for hit in _hexadecimal(seen) if hit in tokens}
            found |= {what for disguise, what in others.items() if disguise in seen}
        for what in sorted(found):
            yield Violation("S17", place, f"it holds {what}")


def disguises(secret: str) -> set[str]:
    """How a secret looks when programs pass it on. Base64 is undone instead, see below."""
    once = json.dumps(secret)[1:-1]
    twice = json.dumps(once)[1:-1]
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), once, twice}


def _hexadecimal(text: str) -> set[str]:
    """Everything that looks like a token, wherever it begins."""
    runs = set(_LONG.findall(text))
    return {run[at : at + 64] for run in runs for at in range(len(run) - 63)}


def _unwrapped(text: str) -> Iterator[str]:
    """What stands in base64 in a text, as it may begin anywhere in a run of letters."""
    for run in {match[0] for match in _BASE64.finditer(text)}:
        plain = run.rstrip("=").translate(str.maketrans("-_", "+/"))
        for start in range(4):
            piece = plain[start:]
            piece = piece[: len(piece) // 4 * 4]
            try:
                yield base64.b64decode(piece).decode("latin-1")
            except binascii.Error:
                continue


def secrets_of(e: Evidence, keys: KeyRing, more: Mapping[str, str]) -> dict[str, str]:
    """Every secret of a run: what was configured, and what was derived from it."""
    found = dict(more)
    for saga_id in e.tokens.values():
        key_id = e.start(saga_id).facts["key_id"]  # type: ignore[union-attr]
        found[keys.instance_token(saga_id, key_id)] = "an instance token"
        found[keys.webhook_token(saga_id, key_id)] = "a webhook token"
    return found


async def dumps(pool: Pool, redis: Redis, logs: Mapping[str, str]) -> dict[str, str]:
    """All that can be read: tables, keys, streams, logs. Where a secret belongs is left out."""
    texts = dict(logs)
    for named in await pool.fetch(_TABLES):
        table = named["name"]
        rows = await pool.fetch(f"SELECT t::text AS told FROM {table} AS t")
        texts[f"table {table}"] = "\n".join(row["told"] for row in rows)
    for master in await masters(redis):
        async for raw in master.scan_iter("*", count=1000):
            key = raw.decode(errors="replace")
            if not key.startswith("evosaga:qr:"):
                kind = key if key.startswith("evosaga:") and key.count(":") < 3 else "routing keys"
                told = await _value(master, raw)
                texts[f"redis {kind}"] = texts.get(f"redis {kind}", "") + f"{key} {told}\n"
    return texts


async def _value(redis: Redis, key: bytes) -> str:
    kind: Any = await redis.type(key)
    value: Any
    match kind:
        case b"stream":
            value = [fields for _, fields in await redis.xrange(key)]  # type: ignore[union-attr]
        case b"string":
            value = await redis.get(key)
        case b"list":
            told: Any = redis.lrange(key, 0, -1)
            value = await told
        case _:
            value = b""
    return "\n".join(_texts(value))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, bytes):
        yield value.decode(errors="replace")
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


_TABLES: Final = """
SELECT schemaname || '.' || tablename AS name FROM pg_tables
WHERE schemaname IN ('evosaga', 'healthcare') ORDER BY 1
"""
