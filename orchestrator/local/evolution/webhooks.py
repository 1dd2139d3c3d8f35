"""Sends webhooks, with Evolution's retries.

Ten attempts with waits of 5, 10, 20 … at most 300 seconds (about 20 minutes in all), kept in memory
only; 400, 401, 403, 404 and 422 end a delivery at once. Events carry no id and no signature, and
every delivery is independent, so they can arrive twice or out of order.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.local.evolution.clock import false_timestamp

if TYPE_CHECKING:
    import aiohttp

    from evosaga.orchestrator.local.evolution.instances import World

EVENTS = (
    "APPLICATION_STARTUP",
    "INSTANCE_CREATE",
    "INSTANCE_DELETE",
    "QRCODE_UPDATED",
    "MESSAGES_SET",
    "MESSAGES_UPSERT",
    "MESSAGES_EDITED",
    "MESSAGES_UPDATE",
    "MESSAGES_DELETE",
    "SEND_MESSAGE",
    "SEND_MESSAGE_UPDATE",
    "CONTACTS_SET",
    "CONTACTS_UPSERT",
    "CONTACTS_UPDATE",
    "PRESENCE_UPDATE",
    "CHATS_SET",
    "CHATS_UPDATE",
    "CHATS_UPSERT",
    "CHATS_DELETE",
    "GROUPS_UPSERT",
    "GROUP_UPDATE",
    "GROUP_PARTICIPANTS_UPDATE",
    "CONNECTION_UPDATE",
    "LABELS_EDIT",
    "LABELS_ASSOCIATION",
    "CALL",
    "TYPEBOT_START",
    "TYPEBOT_CHANGE_STATUS",
    "REMOVE_INSTANCE",
    "LOGOUT_INSTANCE",
    "STATUS_INSTANCE",
)
NEVER_GLOBAL = frozenset({"remove.instance", "logout.instance", "status.instance"})

FINAL_ANSWERS = frozenset({400, 401, 403, 404, 422})
FIRST_WAIT, LONGEST_WAIT, JITTER = 5.0, 300.0, 0.2
TARGET_TIMEOUT = 30.0  # the target's time: ``pace`` does not scale it
USER_AGENT = "axios/1.7.9"


class Webhooks:
    """The instance's own webhook (stored in its row), then the global one."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._session: aiohttp.ClientSession | None = None

    def wanted(self, name: str, event: str) -> bool:
        return self._own(name, event) is not None or self._is_global(event)

    def tell_soon(self, name: str, event: str, data: object) -> None:
        if self.wanted(name, event):
            self._world.spawn(self.tell(name, event, data))

    async def tell(self, name: str, event: str, data: object) -> None:
        """Deliver, with retries. The global webhook waits until the own one is finished."""
        body = self._body(name, event, data)
        if own := self._own(name, event):
            url = str(own["url"])
            headers = _headers(own["headers"] or {})
            path = "/" + event.replace(".", "-").replace("_", "-")
            target = url + path if own["webhookByEvents"] else url
            await self._deliver(name, target, {**body, "destination": url}, headers)
        if self._is_global(event):
            url = str(self._world.settings.global_webhook)
            await self._deliver(name, url, {**body, "destination": url}, {})

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _own(self, name: str, event: str) -> dict[str, Any] | None:
        row = self._world.rows.get(name)
        if row is None or row.webhook is None or not row.webhook["enabled"]:
            return None
        return row.webhook if event.replace(".", "_").upper() in row.webhook["events"] else None

    def _is_global(self, event: str) -> bool:
        return self._world.settings.global_webhook is not None and event not in NEVER_GLOBAL

    def _body(self, name: str, event: str, data: object) -> dict[str, object]:
        instance = self._world.memory.get(name)
        row = self._world.rows.get(name)
        sender = (instance and instance.owner_jid) or (row and row.owner_jid)
        token = row.token if row is not None and self._world.settings.expose_token else None
        return {
            "event": event,
            "instance": name,
            "data": data,
            "destination": None,
            "date_time": false_timestamp(),
            **({"sender": sender} if sender else {}),
            "server_url": self._world.url,
            "apikey": token,
        }

    async def _deliver(
        self, name: str, url: str, body: dict[str, object], headers: dict[str, str]
    ) -> None:
        faults = self._world.faults
        if faults.bend_webhook("webhook_lost", name) is not None:
            return
        if (late := faults.bend_webhook("webhook_late", name)) is not None:
            await asyncio.sleep(late["seconds"])
        if faults.bend_webhook("webhook_twice", name) is not None:
            await self._attempts(url, body, headers)
        await self._attempts(url, body, headers)

    async def _attempts(self, url: str, body: dict[str, object], headers: dict[str, str]) -> None:
        raw = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        for attempt in range(self._world.settings.webhook_attempts):
            if attempt:
                wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
                await self._world.wait(wait * self._world.random.uniform(1 - JITTER, 1 + JITTER))
            if await self._post(url, raw, headers):
                return

    async def _post(self, url: str, raw: bytes, headers: dict[str, str]) -> bool:
        """Send once; True when no retry is needed."""
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TARGET_TIMEOUT)
            self._session = aiohttp.ClientSession(timeout=timeout)
        base_headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        try:
            async with self._session.post(url, data=raw, headers={**base_headers, **headers}) as r:
                return r.status < 300 or r.status in FINAL_ANSWERS
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False


def _headers(configured: dict[str, Any]) -> dict[str, str]:
    """``jwt_key`` becomes a signed Authorization header, valid for ten minutes."""
    headers = {str(name): str(value) for name, value in configured.items()}
    if key := headers.pop("jwt_key", None):
        headers["Authorization"] = f"Bearer {_jwt(key)}"
    return headers


def _jwt(key: str) -> str:
    issued = int(time.time())
    claims = {"iat": issued, "exp": issued + 600, "app": "evolution", "action": "webhook"}
    signed = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
    digest = hmac.new(key.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_unpadded(digest)}"


def _part(claims: dict[str, Any]) -> str:
    return _unpadded(json.dumps(claims, separators=(",", ":")).encode())


def _unpadded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
