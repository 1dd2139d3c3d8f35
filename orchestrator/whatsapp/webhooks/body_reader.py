"""Reading a webhook's body while it comes in, however large: what is kept of it stays small.

Evolution sends media as base64 in the middle of a message when configured so, up to 136 MB. A
routing worker has no use for that in a stream that is kept for a week, and can ask Evolution for
the media itself; losing the message with them would be the worse thing. So up to ``WHOLE`` bytes a
body is kept as it is, and of a larger one every text longer than ``LONGEST_TEXT`` is left out: in
its place stands how long it was and its SHA-256, so that the same webhook stays the same.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any, Final

WHOLE: Final = 1024 * 1024
LONGEST_TEXT: Final = 16 * 1024
"""Bytes, as they stand between the quotes."""
KEPT: Final = 8 * 1024 * 1024
"""What may be left of a body once its long texts are out."""
_AT_ONCE: Final = 4
"""Bodies above ``WHOLE`` that are read at the same time; parsed, one may take 20 times ``KEPT``."""
_PATIENCE: Final = 10.0
_EVENT: Final = re.compile(rb'"event"\s*:\s*"([\x21\x23-\x5b\x5d-\x7e]{1,100})"')
_HEAD: Final = 4096

# One: up to the next text that does not end here, or that may be too long: an escape counts once
# here, and is two bytes. Two: the inside of a text. Both are matched again until nothing more fits,
# since what repeats keeps a note of each repetition. A possessive group keeps none, but before
# Python 3.11.5 it is wrong where its body fails halfway (gh-106052): so only the inner one is,
# whose body can fail so at the end of a piece alone, where no quote follows.
_SHORT: Final = re.compile(
    rb'(?:[^"]+|"(?:[^"\\]|\\.){0,%d}+"){0,1000}' % (LONGEST_TEXT // 2), re.DOTALL
)
_INSIDE: Final = re.compile(rb'(?:[^"\\]+|\\.){0,1000}', re.DOTALL)


class TooLarge(Exception):
    """More than is taken. ``event`` is what the body begins with, None where it does not say."""

    def __init__(self, said: str, size: int, event: str | None) -> None:
        super().__init__(said)
        self.said = said
        self.size = size
        self.event = event


class TooManyBodies(Exception):
    """As many large bodies as there is memory for are being read; it can come again."""


@dataclass(frozen=True, slots=True)
class Body:
    """What came. ``size`` is how many bytes it had, ``omitted`` how many texts were left out."""

    raw: bytes
    size: int
    omitted: int = 0

    @property
    def large(self) -> bool:
        """Whether looking at it takes so long that the event loop would stall."""
        return self.size > WHOLE


class BodyReader:
    """Reads bodies for one process; ``most`` bytes each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def read(self, chunks: AsyncIterable[bytes], announced: int | None) -> Body:
        """The body. Raises ``TooLarge``, ``TooManyBodies``, and what reading raises.

        ``announced`` is what Content-Length says: what is too large is not waited for.
        """
        whole, size = bytearray(), 0
        source = aiter(chunks)
        async for chunk in source:
            whole += chunk
            size += len(chunk)
            if max(size, announced or 0) > self._most:
                said = f"a webhook may have {self._most} bytes"
                raise TooLarge(said, max(size, announced or 0), _event(whole))
            if size > WHOLE:
                break
        else:
            return Body(bytes(whole), size)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._places.acquire()
        except TimeoutError:
            raise TooManyBodies from None
        try:
            return await self._shortened(whole, source)
        finally:
            self._places.release()

    async def _shortened(self, begun: bytearray, rest: AsyncIterable[bytes]) -> Body:
        event, size, kept = _event(begun), len(begun), Shortened()
        kept.feed(bytes(begun))
        begun.clear()
        async for chunk in rest:
            size += len(chunk)
            if size > self._most:
                raise TooLarge(f"a webhook may have {self._most} bytes", size, event)
            kept.feed(chunk)
            if len(kept.out) > KEPT:
                said = f"without its long texts a webhook may have {KEPT} bytes"
                raise TooLarge(said, size, event)
        return Body(bytes(kept.out), size, kept.omitted)


class Shortened:
    """JSON without its long texts, made from pieces that may end anywhere.

    What is no JSON comes out as something that is none either.
    """

    def __init__(self) -> None:
        self.out = bytearray()
        self.omitted = 0
        self._text: bytearray | None = None
        self._digest: Any = None
        self._length = 0
        self._escaped = False

    def feed(self, piece: bytes) -> None:
        """The next piece."""
        at = 0
        while at < len(piece):
            if self._text is None:
                end = _end_of(_SHORT, piece, at)
                self.out += piece[at:end]
                at = end
                if at < len(piece):  # a text that is long, or that goes on in the next piece
                    self._text, self._length, at = bytearray(), 0, at + 1
                continue
            at = self._within(piece, at)

    def _within(self, piece: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            self._take(piece[at : at + 1])
            return at + 1
        found = piece.find(b'"', at)
        end = found if found >= 0 else len(piece)
        if piece.find(b"\\", at, end) >= 0:
            end = _end_of(_INSIDE, piece, at)
        self._take(piece[at:end])
        at = end
        if at == len(piece):
            return at
        if piece[at : at + 1] == b"\\":  # what it escapes comes with the next piece
            self._take(b"\\")
            self._escaped = True
        else:
            self._close()
        return at + 1

    def _take(self, part: bytes) -> None:
        assert self._text is not None
        self._length += len(part)
        if self._digest is None and self._length > LONGEST_TEXT:
            self._digest = hashlib.sha256(self._text)
            self._text.clear()
        if self._digest is None:
            self._text += part
        else:
            self._digest.update(part)

    def _close(self) -> None:
        assert self._text is not None
        if self._digest is not None:
            told = f"[omitted: {self._length} bytes, sha256:{self._digest.hexdigest()}]"
            self._text += told.encode()
            self.omitted += 1
        self.out += b'"' + self._text + b'"'
        self._text, self._digest = None, None


def _end_of(pattern: re.Pattern[bytes], piece: bytes, at: int) -> int:
    """Where what fits the pattern, again and again, ends."""
    while (match := pattern.match(piece, at)) is not None and match.end() > at:
        at = match.end()
    return at


def _event(begun: bytes | bytearray) -> str | None:
    """Evolution writes the event's name first, so a look at the beginning finds it."""
    found = _EVENT.search(begun[:_HEAD])
    return found[1].decode() if found else None
