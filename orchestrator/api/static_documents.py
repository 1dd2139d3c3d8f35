"""The public documents: written once in a thread, then served from memory.

Writing one takes about 0.1 s of CPU, and the routes need no key.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from fastapi import Request
from starlette.responses import Response

Written: TypeAlias = Mapping[str, bytes]
OPENAPI: Final = "openapi"
ASYNCAPI: Final = "asyncapi"
DOCS: Final = "docs"
STYLE: Final = "style"


class Documents:
    """The documents of one application; they do not change while it runs."""

    def __init__(self, write: Callable[[], Written]) -> None:
        self._write = write
        self._writing: asyncio.Task[Written] | None = None

    async def get(self, name: str) -> bytes:
        """One document. All are written once, however many requests wait for them."""
        writing = self._writing
        if writing is None or (writing.done() and (writing.cancelled() or writing.exception())):
            writing = self._writing = asyncio.create_task(asyncio.to_thread(self._write))
        return (await asyncio.shield(writing))[name]


async def document(request: Request, name: str) -> bytes:
    """A document of the request's application."""
    documents: Documents = request.app.state.documents
    return await documents.get(name)


def answer(request: Request, content: bytes, media_type: str, **headers: str) -> Response:
    """The document, or 304 when the client has it already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    told = {"ETag": tag, "Cache-Control": "no-cache"} | headers
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=told)
    return Response(content, media_type=media_type, headers=told)
