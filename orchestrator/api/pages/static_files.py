"""The dashboard's style, script and icon: read once, served under a fingerprint."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.pages.forms import absent, page_router
from evosaga.orchestrator.api.pages.rendering import HERE, ROOT

router: Final = page_router()

_TYPES: Final = {
    "dashboard.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "htmx.LICENSE.txt": "text/plain; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    type: str
    tag: str


def _read(name: str, type_: str) -> _File:
    content = (HERE / "static" / name).read_bytes()
    return _File(content, type_, f'"{hashlib.sha256(content).hexdigest()[:16]}"')


_FILES: Final[Mapping[str, _File]] = {name: _read(name, type_) for name, type_ in _TYPES.items()}


@router.get(ROOT + "/static/{name}")
async def static(request: Request, name: str) -> Response:
    """One of these files; no other path is served."""
    file = _FILES.get(name)
    if file is None:
        raise absent("file")
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)
