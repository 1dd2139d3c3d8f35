"""Translates a Postgres URL written for other programs into one for asyncpg.

A URL is often written for another program: an ORM's scheme in front, its own parameters behind.
asyncpg sends every unknown parameter to the server, which then refuses the connection. So
parameters that only configure another client are dropped, those with another name here are
translated, and those for Postgres (``options``, ``statement_timeout``) are passed on. Of several
hosts we use the one that takes writes.
"""

import re
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode

from evosaga.events import urls

SCHEMES: Final = ("postgresql", "postgres")
_DRIVERS: Final = re.compile(r"(postgresql|postgres)(\+[a-z0-9_]+)?", re.IGNORECASE)

_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SSL_WORDS: Final = {"true": "require", "1": "require", "on": "require", "yes": "require"}
_SSL_WORDS_OFF: Final = {"false": "disable", "0": "disable", "off": "disable", "no": "disable"}
_SESSIONS: Final = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
_WRITABLE: Final = ("primary", "read-write")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")

_DRIVERS_OWN: Final = """
host port dbname database user password passfile service sslmode sslcert sslkey sslrootcert
sslnegotiation sslcrl sslpassword ssl_min_protocol_version ssl_max_protocol_version
target_session_attrs krbsrvname gsslib
"""
"""Parameters that asyncpg reads."""
_TRANSLATED: Final = {
    "applicationname": "application_name",
    "fallback_application_name": "application_name",
    "targetservertype": "target_session_attrs",
}
# In order of owner: libpq; Prisma; Supabase, Vercel, Neon; SQLAlchemy, asyncpg, Django; Node's;
# JDBC, Npgsql; pgx, lib/pq; Rails, Doctrine, Ecto.
_OTHERS_OWN: Final = """
channel_binding client_encoding connect_timeout gssdelegation gssencmode keepalives
keepalives_count keepalives_idle keepalives_interval load_balance_hosts replication require_auth
requirepeer requiressl scram_client_key scram_server_key sslcertmode sslcompression sslkeylogfile
sslsni tcp_user_timeout min_protocol_version max_protocol_version

connection_limit max_connection_lifetime max_idle_connection_lifetime pgbouncer pool_timeout schema
single_use_connections socket_timeout sslaccept sslidentity statement_cache_size

endpoint pool_mode sslpolicy supa workaround

async_fallback command_timeout conn_health_checks conn_max_age max_overflow pool pool_pre_ping
pool_recycle pool_size prepared_statement_cache_size prepared_statement_name_func timeout

allowexitonidle connectiontimeoutmillis fetch_types idle_timeout idletimeoutmillis keepalive max
max_lifetime maxuses min prepare query_timeout simple_query synchronize uselibpqcompat

binarytransfer connecttimeout currentschema logintimeout loglevel minpoolsize maxpoolsize pooling
preparethreshold reconnect rewritebatchedinserts sockettimeout sslfactory stringtype tcpkeepalive

binary_parameters default_query_exec_mode description_cache_capacity disable_prepared_binary_result
pool_health_check_period pool_max_conn_idle_time pool_max_conn_lifetime
pool_max_conn_lifetime_jitter pool_max_conns pool_min_conns pool_min_idle_conns
prefer_simple_protocol statement_cache_capacity statement_cache_mode

adapter charset checkout_timeout encoding prepared_statements reaping_frequency serverversion
server_version socket_options
"""
"""Parameters of other clients; here poolers are detected, and deadlines and schemas are fixed."""
_OURS: Final = frozenset(_DRIVERS_OWN.split())
_SOMEBODY_ELSES: Final = frozenset(_OTHERS_OWN.split())
_NAME: Final = re.compile(r"[a-z_][a-z0-9_.]*")


def understood(url: str) -> str:
    """The URL as asyncpg reads it. Raises ``ValueError`` with a sentence without the password."""
    parts = _split(url)
    scheme = _DRIVERS.fullmatch(parts.scheme)
    if scheme is None:
        raise ValueError(f"must start with {' or '.join(f'{s}://' for s in SCHEMES)}")
    known: dict[str, str] = {}
    said = dict(parse_qsl(parts.query))  # leaves out empty values
    for given, value in said.items():
        name = given.lower()
        name = _TRANSLATED.get(name, name)
        if name not in _SOMEBODY_ELSES:
            known.update(_translated(given, name, value))
    # As in libpq: with the system's certificates the server's name is verified too.
    system = said.get("sslrootcert") == "system"
    if system and known.setdefault("sslmode", "verify-full") != "verify-full":
        raise ValueError("has sslrootcert=system, which goes with sslmode=verify-full alone")
    if len(hosts_of(url)) > 1:
        wanted = known.setdefault("target_session_attrs", "read-write")
        if wanted not in (*_WRITABLE, "any"):
            raise ValueError(
                f"has target_session_attrs={wanted}, and evosaga writes: leave it out, or say "
                "read-write"
            )
        known["target_session_attrs"] = "read-write" if wanted == "any" else wanted
    query = urlencode(known)
    rest = url.split("?", 1)[0].split("://", 1)[1] if "://" in url else ""
    return f"postgresql://{rest}{'?' if query else ''}{query}"


def hosts_of(url: str) -> list[str]:
    """The URL once for each of its hosts, in order. Raises ``ValueError`` without the password.

    Several are written ``a:5432,b:5432``, or as ``?host=a,b&port=5432,5433``.
    """
    parts = _split(url)
    user, at, where = parts.netloc.rpartition("@")
    if where:
        netlocs = where.split(",")
        if not all(netlocs):
            raise ValueError("names a host that is empty: is there a comma too many?")
        return [parts._replace(netloc=f"{user}{at}{one}").geturl() for one in netlocs]
    said = dict(parse_qsl(parts.query))
    hosts, ports = said.get("host", "").split(","), said.get("port", "").split(",")
    if len(hosts) == 1:
        return [url]
    if len(ports) not in (1, len(hosts)):
        raise ValueError(f"names {len(hosts)} hosts and {len(ports)} ports")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    each = [
        said | {"host": host} | ({"port": port} if port else {})
        for host, port in zip(hosts, ports, strict=True)
    ]
    # By hand: without a host in front geturl leaves out the slashes.
    head = url.partition("?")[0]
    return [f"{head}?{urlencode(one)}" for one in each]


def place_of(url: str) -> str:
    """The hosts and ports of the URL, without a user or a password; where it names none, empty."""
    try:
        parts = _split(url)
        said = dict(parse_qsl(parts.query))
    except ValueError:
        return "the given address"
    where = parts.netloc.rpartition("@")[2]
    if not where and "host" in said:
        where = said["host"] + (f":{said['port']}" if said.get("port") else "")
    return where


def _split(url: str) -> SplitResult:
    try:
        return urls.split(url)
    except ValueError:  # its text may contain the password
        raise ValueError("is not a URL") from None


def _translated(given: str, name: str, value: str) -> dict[str, str]:
    """One parameter under asyncpg's names; empty when asyncpg has none for it."""
    shown = given[:40]
    if name in ("ssl", "sslmode", "tls", "usessl"):
        return {"sslmode": _ssl_mode(shown, value.lower())}
    if name == "target_session_attrs":
        value = value.lower()
        value = {"master": "primary", "preferprimary": "any", "secondary": "standby"}.get(
            value, value
        )
        if value not in _SESSIONS:
            raise ValueError(f"has {shown}, which must be one of {', '.join(_SESSIONS)}")
        return {name: value}
    if name == "sslrootcert" and value == "system":
        paths = ssl.get_default_verify_paths()
        value = paths.cafile or paths.openssl_cafile
    if name in _FILES and not Path(value).expanduser().is_file():
        raise ValueError(f"has {shown}, but there is no such file")
    if name in _FILES:
        return {name: str(Path(value).expanduser())}
    if name not in _OURS and not _NAME.fullmatch(name):
        raise ValueError(f"has the parameter {shown!r}, which Postgres does not know: take it out")
    return {name: value}


def _ssl_mode(shown: str, value: str) -> str:
    # "require" in node-postgres and others: encrypted, without verifying the server.
    value = {"no-verify": "require", **_SSL_WORDS, **_SSL_WORDS_OFF}.get(value, value)
    value = value.replace("_", "-")
    if value not in _SSL_MODES:
        raise ValueError(f"has {shown}, which must be one of {', '.join(_SSL_MODES)}")
    return value
