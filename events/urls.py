"""URLs that name several servers, ``scheme://user:password@h1:5432,[::1]:5433/path``.

``urllib.parse`` means one, and refuses brackets behind anything else; which of its releases do so
is a matter of their patch level.
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_SERVERS: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)([^/?#]*,[^/?#]*)(.*)", re.DOTALL)


def split(url: str) -> SplitResult:
    """Like ``urlsplit``; ``netloc`` has all servers. Raises ``ValueError``."""
    if (several := _SERVERS.fullmatch(url)) is None:
        return urlsplit(url)
    return urlsplit(f"{several[1]}several{several[3]}")._replace(netloc=several[2])
