"""Reads the URLs of a Redis Cluster and of Sentinels, which name several servers.

``redis+cluster://user:password@h1:p,h2:p/`` names some nodes of a cluster, which know the others.
``redis+sentinel://user:password@h1:p,h2:p/service/db`` names Sentinels, which know the master of
the service; the user and the password are those of Redis, and ``sentinel_username`` and
``sentinel_password`` are those of the Sentinels. ``rediss+…`` is TLS to all of them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, urlencode

from evosaga.events import urls

Kind: TypeAlias = Literal["single", "cluster", "sentinel"]
Node: TypeAlias = tuple[str, int]
"""A host and a port."""

SCHEMES: Final = ("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_PORTS: Final = {"cluster": 6379, "sentinel": 26379}
_NODE: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[\w.-]+))(?::(?P<port>\d+))?")
_SERVICE: Final = re.compile(r"/([A-Za-z0-9._-]+)(?:/(\d*))?")
_OF_SENTINEL: Final = {"sentinel_username": "username", "sentinel_password": "password"}
_NOT_IN_CLUSTER: Final = ("ssl_ca_path", "ssl_password")


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is. ``plain``: the URL that one server would have, with all its options."""

    kind: Kind
    plain: str
    nodes: tuple[Node, ...] = ()
    service: str = ""
    sentinel: Mapping[str, Any] = field(default_factory=dict)
    """Who logs in at the Sentinels."""

    @property
    def tls(self) -> bool:
        """Whether connections use TLS."""
        return self.plain.startswith("rediss:")


def read(url: str) -> Address:
    """The address. Raises ``ValueError`` with what is wrong, and no part of the URL in it."""
    parts = urls.split(url)
    if parts.scheme not in SCHEMES:
        return Address("single", url)
    base, _, kind = parts.scheme.partition("+")
    who, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(one, _PORTS[kind]) for one in hosts.split(","))
    given = parse_qsl(parts.query, keep_blank_values=True)
    rest = [(name, value) for name, value in given if name not in _OF_SENTINEL]
    host = f"[{nodes[0][0]}]" if ":" in nodes[0][0] else nodes[0][0]

    def plain(database: str) -> str:
        query = f"?{urlencode(rest)}" if rest else ""
        return f"{base}://{who}{at}{host}:{nodes[0][1]}/{database}{query}"

    if kind == "cluster":
        _refuse_databases(parts.path, given)
        return Address("cluster", plain("0"), nodes)
    if (named := _SERVICE.fullmatch(parts.path)) is None:
        raise ValueError(
            "must name the service behind the Sentinels, and perhaps the number of a database: "
            "redis+sentinel://host:26379/SERVICE/0"
        )
    logins = {_OF_SENTINEL[name]: value for name, value in given if name in _OF_SENTINEL}
    return Address("sentinel", plain(named[2] or "0"), nodes, named[1], logins)


def shown(kind: Kind, node: Node, *, tls: bool, user: bool, service: str = "SERVICE") -> str:
    """The URL that is right for a server of that kind, for an error's cure; without its secrets."""
    scheme = ("rediss" if tls else "redis") + ("" if kind == "single" else f"+{kind}")
    host = f"[{node[0]}]" if ":" in node[0] else node[0]
    who = "USER:PASSWORD@" if user else ""
    end = {"single": "0", "cluster": "", "sentinel": f"{service}/0"}[kind]
    return f"{scheme}://{who}{host}:{node[1]}/{end}"


def hosts(url: str) -> str:
    """Where a URL of several servers leads, without a user, a password and options."""
    parts = urls.split(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def _node(text: str, port: int) -> Node:
    found = _NODE.fullmatch(text)
    number = int(found["port"] or port) if found else 0
    if found is None or not 0 < number < 65536:
        raise ValueError(
            "must name its servers as host:port, several with commas between them; in a user or a "
            "password / ? # [ ] @ : % must be percent-encoded (@ is %40)"
        )
    return found["six"] or found["host"], number


def _refuse_databases(path: str, given: list[tuple[str, str]]) -> None:
    """A cluster has the database 0 alone, and a client of it knows fewer options."""
    if path not in ("", "/", "/0") or dict(given).get("db", "0") != "0":
        raise ValueError(
            "a Redis Cluster has no numbered databases: end the URL with / (two that share a "
            "cluster are kept apart by EVOSAGA_REDIS_PREFIX)"
        )
    for name, _ in given:
        if name in _NOT_IN_CLUSTER or name in _OF_SENTINEL:
            raise ValueError(f"the parameter {name!r} is not for a cluster: take it out of the URL")
