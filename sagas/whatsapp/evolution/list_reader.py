"""Reading Evolution's list of all instances while it arrives.

Evolution has no pages: one answer holds every instance, about a kilobyte each. An element becomes
a ``ListedInstance`` as soon as it is complete, so neither the text nor the parsed JSON of the whole
list is ever in memory, and no slice of the work is long enough to hold up the event loop.
"""

import codecs
import json
import re
from typing import Final

from evosaga.sagas.whatsapp.evolution.models import InstanceList

SLICE: Final = 32 * 1024
"""Bytes that are read at a time: about a millisecond of work."""
_LARGEST_ELEMENT: Final = 1024 * 1024
_decode: Final = json.JSONDecoder().raw_decode
_SPACE: Final = re.compile(r"[ \t\n\r]*")


class ListReader:
    """Takes the bytes of a JSON array in pieces. ``secret`` is taken out of them."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""
        self._found = InstanceList()
        self._begun = self._over = self._broken = False
        self._first = True

    @property
    def found(self) -> InstanceList | None:
        """The list, once it has been read to its end; None before, and when it is no JSON array."""
        return self._found if self._over and not self._broken else None

    def feed(self, piece: bytes) -> None:
        """The next bytes, ``SLICE`` of them at the most."""
        if self._broken:
            return
        try:
            text = self._rest + self._text.decode(piece)
            self._take(text.replace(self._secret, "[redacted]") if self._secret else text)
        except (ValueError, RecursionError):
            self._broken = True

    def _take(self, text: str) -> None:
        """Every element of ``text`` that is complete. Raises ``ValueError`` when it is no array."""
        at = _after_space(text, 0)
        if not self._begun and at < len(text):
            self._begun, at = True, _expect(text, at, "[")
        while not self._over:
            at = _after_space(text, at)
            if at == len(text):
                break
            if text[at] == "]" and self._first:
                self._over, at = True, at + 1
                break
            end = self._element(text, at)
            if end is None:
                break
            self._first = False
            self._over, at = text[end] == "]", end + 1
        self._rest = text[at:]
        if len(self._rest) > _LARGEST_ELEMENT or (self._over and self._rest.strip(" \t\r\n")):
            raise ValueError("no end of an element, or something behind the list")

    def _element(self, text: str, at: int) -> int | None:
        """Keep the element that begins there: where its comma or bracket is; None: not here yet."""
        try:
            element, end = _decode(text, at)
        except ValueError:  # the rest of it comes with the next piece, or never
            return None
        number, end = isinstance(element, int | float), _after_space(text, end)
        if end == len(text):  # of a number there may be more
            return None
        if text[end] not in ",]":
            if number:  # "3." with the rest in the next piece
                return None
            raise ValueError("neither a comma nor the end of the list")
        self._found.add(element)
        return end


def _after_space(text: str, at: int) -> int:
    fit = _SPACE.match(text, at)
    return fit.end() if fit else at


def _expect(text: str, at: int, sign: str) -> int:
    if text[at] != sign:
        raise ValueError(f"no {sign}")
    return at + 1
