"""The address of Postgres, as people have it for other programs."""

import pytest

from evosaga.events.postgres_url import hosts_of, place_of, understood
from evosaga.orchestrator.config.settings import SettingsError, load_settings

PLAIN = "postgresql://me:pw@db:5432/clinic"


@pytest.mark.parametrize(
    "query",
    [
        "pgbouncer=true",
        "pgbouncer=true&connection_limit=1",
        "schema=public",
        "channel_binding=prefer",
        "connect_timeout=10",
        "pool_timeout=20",
        "supa=base-pooler.x",
        "prepared_statement_cache_size=0",
        "prepareThreshold=0&currentSchema=public",
        "keepalives=1&keepalives_idle=30",
        "serverVersion=16&charset=utf8",
        "pool_max_conns=4",
        "client_encoding=LATIN1",
        "sslmode=",
        "pgbouncer",
    ],
)
def test_what_steers_another_client_is_left_out(query: str) -> None:
    assert understood(f"{PLAIN}?{query}") == PLAIN


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("ssl=true", "sslmode=require"),
        ("ssl=no-verify", "sslmode=require"),
        ("sslmode=disable&channel_binding=prefer", "sslmode=disable"),
        ("sslmode=VERIFY_FULL", "sslmode=verify-full"),
        ("targetServerType=primary", "target_session_attrs=primary"),
        ("ApplicationName=mine", "application_name=mine"),
        ("options=project%3Dx", "options=project%3Dx"),
        ("statement_timeout=5000", "statement_timeout=5000"),
        ("host=%2Fvar%2Frun%2Fpostgresql", "host=%2Fvar%2Frun%2Fpostgresql"),
    ],
)
def test_what_is_meant_is_said_in_the_words_of_the_driver(query: str, meant: str) -> None:
    assert understood(f"{PLAIN}?{query}") == f"{PLAIN}?{meant}"


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg2", "POSTGRES"]
)
def test_a_scheme_may_name_a_driver(scheme: str) -> None:
    assert understood(f"{scheme}://me:pw@db:5432/clinic") == PLAIN


def test_of_several_hosts_the_one_that_takes_writes_is_asked_for() -> None:
    url = "postgresql://me:p%40%23w@one:5432,two:5433/clinic"
    for query in ("", "?target_session_attrs=any", "?targetServerType=any"):
        assert understood(url + query) == f"{url}?target_session_attrs=read-write"
    assert understood(f"{url}?targetServerType=primary").endswith("?target_session_attrs=primary")
    assert load_settings(_env_file=None, database_url=url).database_url == understood(url)
    assert place_of(url) == "one:5432,two:5433"


@pytest.mark.parametrize(
    ("url", "each"),
    [
        (PLAIN, [PLAIN]),
        ("postgresql://a,b:5433/x?sslmode=disable",
         ["postgresql://a/x?sslmode=disable", "postgresql://b:5433/x?sslmode=disable"]),
        ("postgresql://me:p%2Cw@[::1]:5432,[::2]/x",
         ["postgresql://me:p%2Cw@[::1]:5432/x", "postgresql://me:p%2Cw@[::2]/x"]),
        ("postgresql://me:p%5Bw@a,[::1]:5433,c/x",
         ["postgresql://me:p%5Bw@a/x", "postgresql://me:p%5Bw@[::1]:5433/x",
          "postgresql://me:p%5Bw@c/x"]),
        ("postgresql:///x?host=a,b&port=1,2",
         ["postgresql:///x?host=a&port=1", "postgresql:///x?host=b&port=2"]),
        ("postgresql://me@/x?host=%2Fa%2C%2Fb&port=5432",
         ["postgresql://me@/x?host=%2Fa&port=5432", "postgresql://me@/x?host=%2Fb&port=5432"]),
    ],
)  # fmt: skip
def test_each_host_has_a_url_of_its_own(url: str, each: list[str]) -> None:
    assert hosts_of(url) == each


@pytest.mark.parametrize(
    ("rest", "named"),
    [
        ("db/x?sslmode=sometimes", "has sslmode, which must be one of disable, allow"),
        ("db/x?target_session_attrs=best", "has target_session_attrs, which must be one of any"),
        ("db/x?sslrootcert=/nowhere", "has sslrootcert, but there is no such file"),
        ("db/x?so%20strange=1", "has the parameter 'so strange'"),
        ("db/x#y", "must be percent-encoded"),
        ("a:5432,b:54x2/x", "a port is a number"),
        ("a:5432,/x", "names a host that is empty"),
        ("/x?host=a,b&port=1,2,3", "names 2 hosts and 3 ports"),
        ("a,b/x?target_session_attrs=prefer-standby", "and evosaga writes: leave it out"),
    ],
)
def test_what_nobody_understands_is_named_in_one_line_without_the_password(
    rest: str, named: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_settings(_env_file=None, database_url=f"postgresql://me:hunter2@{rest}")
    said = str(refusal.value)
    assert "DATABASE_URL: " in said
    assert named in said
    assert "hunter2" not in said


def test_who_trusts_the_systems_certificates_checks_the_servers_name() -> None:
    assert "sslmode=verify-full" in understood(f"{PLAIN}?sslrootcert=system")
    with pytest.raises(ValueError, match="goes with sslmode=verify-full alone"):
        understood(f"{PLAIN}?sslrootcert=system&sslmode=require")
