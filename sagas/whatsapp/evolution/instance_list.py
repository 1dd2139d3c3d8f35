"""What an element of Evolution's list says, in whatever shape it comes. Pure.

``GET /instance/fetchInstances`` answers with flat elements that have a ``name`` from 2.1 on, and
with ``{"instance": {"instanceName", "status", "owner", "apikey"}}`` before (evolution-api#660). The
token may be null, or hidden (evolution-api#657). So an instance is absent only from a list of which
every element can be read, and an element without a token says nothing of whose it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_JID: Final = re.compile(r"([0-9]{6,20})(?:_[0-9]+)?(?::[0-9]+)?(?:@(?:s\.whatsapp\.net|c\.us))?")
_LINKED: Final = re.compile(r"[0-9]+(?:_[0-9]+)?(?::[0-9]+)?(?:@[a-z.]+)?")


class UnreadableList(Exception):
    """The answer proves no absence: somebody must look why Evolution lists what it does."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One element of the list. ``token`` is None where the list does not show it."""

    name: str
    token: str | None
    fields: Mapping[str, Any]
    """Everything that was said, names of older releases included."""

    @property
    def status(self) -> str | None:
        """The database's word on the connection: ``open``, ``connecting`` or ``close``."""
        told = self.fields.get("connectionStatus", self.fields.get("status"))
        return told if isinstance(told, str) else None

    @property
    def channel(self) -> str | None:
        told = self.fields.get("integration")
        told = told.get("integration") if isinstance(told, dict) else told
        return told if isinstance(told, str) else None

    @property
    def owner(self) -> str | None:
        """The WhatsApp id of the phone that was linked last."""
        told = self.fields.get("ownerJid", self.fields.get("owner"))
        return told if isinstance(told, str) else None

    @property
    def phone(self) -> str | None:
        return phone_of(self.owner)

    @property
    def linked(self) -> bool:
        """Whether a phone was linked, even one whose number is not told."""
        return linked(self.owner)

    @property
    def reason(self) -> int | None:
        """Why its connection ended last, as a code of WhatsApp's."""
        told = self.fields.get("disconnectionReasonCode")
        return told if isinstance(told, int) and not isinstance(told, bool) else None


def phone_of(jid: Any) -> str | None:
    """The phone number in a WhatsApp id such as ``5511999990000:12@s.whatsapp.net``, in digits.

    A LID (``…@lid``) stands for a person who hides the number, and is none.
    """
    fit = _JID.fullmatch(jid) if isinstance(jid, str) else None
    return fit[1] if fit else None


def linked(jid: Any) -> bool:
    """Whether it is the id of somebody's phone, with a number or as a LID."""
    return isinstance(jid, str) and _LINKED.fullmatch(jid) is not None


def read(element: Any) -> Listed | None:
    """None when it has no name that can be read."""
    if not isinstance(element, dict):
        return None
    inner = element.get("instance")
    fields = element | inner if isinstance(inner, dict) else element
    name = fields.get("instanceName", fields.get("name"))
    if not isinstance(name, str):
        return None
    token = fields.get("token") or fields.get("apikey")
    return Listed(name, token if isinstance(token, str) and token else None, fields)


def find(body: Any, name: str) -> Listed | None:
    """The element of that name; None when a list that can be read has none.

    Raises ``UnreadableList``.
    """
    if not isinstance(body, list):
        raise UnreadableList("Evolution's answer is no list")
    found: Listed | None = None
    unreadable = 0
    for element in body:
        # Thousands of elements of today's shape, and one that is looked for.
        if isinstance(element, dict) and "instance" not in element:
            told = element.get("instanceName", element.get("name"))
            if isinstance(told, str) and told != name:
                continue
        one = read(element)
        if one is None:
            unreadable += 1
        elif one.name == name and (found is None or found.token is None):
            found = one
    if found is None and unreadable:
        some = f"{unreadable} of {len(body)} elements of Evolution's list have no name"
        raise UnreadableList(f"{some}, so nobody can say what is not in it")
    return found
