"""Checks the parameters of a Redis URL and drops those that evosaga sets itself.

A URL that also serves other programs may set client options (timeouts, encodings). These are
dropped, since evosaga sets them. An unknown parameter is refused by name.
"""

import re
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import parse_url

from evosaga.events import redis_address

_KEPT: Final = frozenset(
    {
        "db",
        "username",
        "password",
        "client_name",
        "health_check_interval",
        "socket_keepalive",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_ca_data",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
    }
)
_LEFT_OUT: Final = frozenset(
    {
        "decode_responses",
        "encoding",
        "encoding_errors",
        "legacy_responses",
        "max_connections",
        "protocol",
        "retry_on_error",
        "retry_on_timeout",
        "socket_connect_timeout",
        "socket_read_size",
        "socket_timeout",
        "timeout",
    }
)
_CERT_REQS: Final = ("none", "optional", "required")
_WHOLE: Final = ("db", "health_check_interval", "ssl_min_version")


def usable(url: str) -> tuple[str, list[str]]:
    """The URL without the parameters that it may not set, and the names of those.

    Raises ``ValueError`` naming an unknown parameter or one with an invalid value.
    """
    if (several := redis_address.read(url)).kind != "single":
        return url, usable(several.plain)[1]
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError("its path must be the number of a database, as in redis://host:6379/1")
    given = parse_qsl(parts.query, keep_blank_values=True)
    for name, value in given:
        if name not in _KEPT | _LEFT_OUT:
            known = "db, client_name, health_check_interval, socket_keepalive, and with rediss:// "
            raise ValueError(
                f"the parameter {name!r} is not one that evosaga knows: take it out of the URL "
                f"(it knows {known}ssl_…)"
            )
        if name.startswith("ssl_") and parts.scheme != "rediss":
            raise ValueError(f"the parameter {name!r} needs a URL that begins with rediss://")
        if name == "ssl_cert_reqs" and value not in _CERT_REQS:
            raise ValueError(f"the parameter 'ssl_cert_reqs' may be {', '.join(_CERT_REQS)}")
        if name in _WHOLE and not value.isdecimal():
            raise ValueError(f"the parameter {name!r} must be a whole number")
        if parts.scheme == "unix" and name == "socket_keepalive":
            raise ValueError("the parameter 'socket_keepalive' is for TCP: take it out of the URL")
    kept = [(name, value) for name, value in given if name in _KEPT]
    left_out = sorted({name for name, _ in given if name in _LEFT_OUT})
    return parts._replace(query=urlencode(kept)).geturl() if left_out else url, left_out


def options(url: str) -> dict[str, Any]:
    """The URL's options for a client's constructor. Raises ``ValueError`` like ``usable``.

    Of several servers: those of a connection to the first.
    """
    read: dict[str, Any] = dict(parse_url(usable(redis_address.read(url).plain)[0]))
    return read
