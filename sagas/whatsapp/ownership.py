"""Ownership tokens: what proves that an instance or a webhook is ours.

The creator chooses an instance's ``token``, so ours is an HMAC of the id of the saga that creates
it (a *birthmark*). A later look can prove ownership although the token is stored nowhere, and
without the secret key it can't be made.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from evosaga.sagas.outcome import NotOnThisWorker

_SHORTEST: Final = 32
BIRTHMARK: Final = re.compile(r"[0-9a-f]{64}")
"""The shape of a birthmark, under whichever key it was made."""
SECRET_KEY_UNKNOWN: Final = "secret_key_unknown"  # noqa: S105  # a code
"""The code of an attempt whose worker has not the secret key under which the saga began."""
HASHED: Final = "sha256:"
"""How a row says that it keeps no token but the hash of one."""


class UnknownKey(NotOnThisWorker):
    """Something was made under a secret key that is no longer configured.

    The operator must put the old key back into EVOSAGA_SECRET_KEY, behind the new one, or has
    given this process another one than the others.
    """

    code = SECRET_KEY_UNKNOWN

    @property
    def reason(self) -> str:
        """Said of the saga that the key is needed for."""
        return f"the saga was {self}"


class KeyRing:
    """The secret keys in use. The first makes what is new; all can recognise what is old."""

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets or any(len(secret.encode()) < _SHORTEST for secret in secrets):
            raise ValueError(f"every secret key needs at least {_SHORTEST} bytes")
        self._keys = {_key_id(secret): secret.encode() for secret in secrets}
        self.current = next(iter(self._keys))
        """The id of the first key. It is recorded with what is made; it gives nothing away."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys, that of the first one first."""
        return tuple(self._keys)

    def instance_token(self, saga_id: UUID, key_id: str) -> str:
        """The birthmark of the instance that this saga creates."""
        return self._derive("instance", saga_id, key_id)

    def webhook_token(self, saga_id: UUID, key_id: str) -> str:
        """What Evolution must show when it delivers events of that instance."""
        return self._derive("webhook", saga_id, key_id)

    def webhook_tokens(self, saga_id: UUID) -> tuple[str, ...]:
        """What Evolution may show for that instance, whichever of our keys it was made under."""
        return tuple(self.webhook_token(saga_id, key_id) for key_id in self._keys)

    def global_webhook_tokens(self) -> tuple[str, ...]:
        """What Evolution's global webhook may show, one a key; the first is the one to hand out."""
        return tuple(
            hmac.new(key, b"evosaga/global-webhook", hashlib.sha256).hexdigest()
            for key in self._keys.values()
        )

    def recognised(self, saga_id: UUID, token: str) -> str | None:
        """The id of the key under which this token is that saga's birthmark; None: it is not."""
        for key_id in self._keys:
            mine = self.instance_token(saga_id, key_id)
            if hmac.compare_digest(mine.encode(), token.encode()):
                return key_id
        return None

    def _derive(self, purpose: str, saga_id: UUID, key_id: str) -> str:
        key = self._keys.get(key_id)
        if key is None:
            raise UnknownKey(
                f"made under secret key {key_id}, which EVOSAGA_SECRET_KEY no longer has: "
                "put it back behind the new one"
            )
        return hmac.digest(key, f"evosaga/{purpose}/{saga_id}".encode(), "sha256").hex()


def stored(webhook_token: str) -> str:
    """What a row keeps of a webhook token: enough to recognise it, too little to show it.

    At most 50 characters, without padding. The token is random, so it needs no salt.
    """
    digest = hashlib.sha256(webhook_token.encode(errors="surrogatepass")).digest()
    return HASHED + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def fingerprint(secret: str) -> str:
    """A short hash that may be logged and recorded where the secret itself may not."""
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


def _key_id(secret: str) -> str:
    return hashlib.sha256(b"evosaga/key-id/" + secret.encode()).hexdigest()[:8]
