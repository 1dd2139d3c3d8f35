"""Authentication of webhooks by the token that Evolution was given for the instance.

A token is derived from the saga that creates the instance, so it can be checked before there is
any row: during the create, when Evolution is quickest. It also says *which* integration an event
is about when a name has been used more than once. Rows of older code had a token of their own, and
keep the hash of it; one that a person writes there by hand is good as it stands.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit
from uuid import UUID

import jwt

from evosaga.events.database import Pool
from evosaga.sagas.whatsapp.ownership import HASHED, KeyRing, stored

_DERIVED_NAME: Final = re.compile(
    r"wa-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
)
_KEPT_SECONDS: Final = 30.0
_ASK_AGAIN_SECONDS: Final = 1.0
_KEPT: Final = 10_000
_DEADLINE: Final = 4.0
"""Seconds for Postgres; after that the delivery is answered with 503."""
SKEW: Final = 60.0
"""Seconds that Evolution's clock and ours may differ when it signs instead of showing."""
_CHECKED: Final[jwt.types.Options] = {
    "require": ["exp"],
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}
_NOBODYS: Final = secrets.token_hex(32)


@dataclass(frozen=True, slots=True)
class Presented:
    """What a delivery shows: our token, or a JSON Web Token signed with it (``jwt_key``)."""

    token: str | None = None
    bearer: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an instance name. ``tokens`` are of all integrations that have had it,
    or hashes of them."""

    tokens: Sequence[tuple[UUID, str]] = ()
    current: UUID | None = None
    """The integration that has it now, or is being made with it."""
    elsewhere: bool = False
    """Its own webhook leads somewhere else, and its messages go there."""
    asked_at: float = 0.0


class WebhookAuthenticator:
    """Recognises deliveries. What was asked of Postgres is kept for half a minute."""

    def __init__(self, pool: Pool, keys: KeyRing) -> None:
        self._pool = pool
        self._keys = keys
        self._known: OrderedDict[str, Known] = OrderedDict()

    def is_global(self, token: str) -> bool:
        """Whether this is the token of the global webhook."""
        # With WEBHOOK_BY_EVENTS Evolution puts "/connection-update" behind the whole URL.
        given = token.partition("/")[0]
        return any(_same(given, ours) for ours in self._keys.global_webhook_tokens())

    async def recognise(self, instance_name: str, shown: Presented) -> UUID | None:
        """The integration whose token was shown. Raises what Postgres does, or ``TimeoutError``."""
        if (derived := _DERIVED_NAME.fullmatch(instance_name)) is not None:
            saga_id = UUID(derived[1])
            ours = [(saga_id, token) for token in self._keys.webhook_tokens(saga_id)]
            if (found := _match(shown, ours)) is not None:
                return found
        known = self._known.get(instance_name)
        if known is not None and (found := _match(shown, known.tokens)) is not None:
            return found
        if known is not None and time.monotonic() - known.asked_at < _ASK_AGAIN_SECONDS:
            return None
        return _match(shown, (await self._ask(instance_name)).tokens)

    async def known(self, instance_name: str) -> Known:
        """What is known of this name. Raises what Postgres does, or ``TimeoutError``."""
        known = self._known.get(instance_name)
        # An empty answer is soon out of date: an integration may be made at any time.
        kept = _KEPT_SECONDS if known is not None and known.current else _ASK_AGAIN_SECONDS
        if known is None or time.monotonic() - known.asked_at > kept:
            return await self._ask(instance_name)
        return known

    async def _ask(self, instance_name: str) -> Known:
        async with asyncio.timeout(_DEADLINE):
            rows = await self._pool.fetch(_KNOWN, instance_name)
        tokens = [(row["id"], row["webhook_token"]) for row in rows if row["webhook_token"]]
        for saga_id in dict.fromkeys(row["id"] for row in rows):
            tokens += [(saga_id, token) for token in self._keys.webhook_tokens(saga_id)]
        known = Known(
            tokens,
            current=rows[0]["id"] if rows else None,
            elsewhere=bool(rows) and _is_elsewhere(rows[0]["webhook_url"], instance_name),
            asked_at=time.monotonic(),
        )
        self._known.pop(instance_name, None)
        self._known[instance_name] = known
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return known


def _is_elsewhere(webhook_url: str | None, instance_name: str) -> bool:
    if webhook_url is None:
        return False
    try:
        path = unquote(urlsplit(webhook_url).path)
    except ValueError:  # older code has written anything there
        return True
    return not path.rstrip("/").endswith(f"/webhooks/evolution/{instance_name}")


def _match(shown: Presented, tokens: Iterable[tuple[UUID, str]]) -> UUID | None:
    """All are compared, so that the time it takes says nothing about which one it was."""
    found: UUID | None = None
    for integration_id, token in [*tokens, (None, _NOBODYS)]:
        fits = shown.token is not None and _same(_like(token, shown.token), token)
        signed = shown.bearer is not None and is_signed(shown.bearer, token)
        if (fits or signed) and integration_id is not None:
            found = integration_id
    return found


def _like(token: str, shown: str) -> str:
    """What was shown, in the form in which the token is kept."""
    return stored(shown) if token.startswith(HASHED) else shown


def _same(one: str, other: str) -> bool:
    digests = (hashlib.sha256(it.encode(errors="surrogatepass")).digest() for it in (one, other))
    return hmac.compare_digest(*digests)


def is_signed(token: str, key: str) -> bool:
    """Whether this is a valid JSON Web Token signed with ``key`` (HS256)."""
    # HMAC pads with zeros itself; done here, PyJWT does not warn of the short tokens of older code.
    padded = key.encode().ljust(32, b"\0")
    try:
        jwt.decode(token, padded, algorithms=["HS256"], leeway=SKEW, options=_CHECKED)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return False
    return True


# The row in use comes first, then other rows of that name, then creates, newest first: one that
# is under way has no row yet, and one that is over may still have deliveries on their way.
_KNOWN: Final = """
SELECT id, webhook_token, webhook_url FROM (
    SELECT id, webhook_token, config ->> 'webhook_url' AS webhook_url,
           CASE WHEN enabled THEN 0 ELSE 1 END AS place, updated_at AS at
    FROM healthcare.integrations
    WHERE config ->> 'instance_name' = $1 AND type = 'whatsapp' AND provider = 'evolution'
    UNION ALL
    SELECT saga_id, NULL, NULL, 2, created_at FROM evosaga.sagas
    WHERE instance_name = $1 AND saga = 'create-integration' AND status <> 'rejected'
) AS found ORDER BY place, at DESC NULLS LAST LIMIT 10
"""
