"""No password, and no part of one, is told: by a log line, a traceback or a refusal."""

from urllib.parse import parse_qsl, urlsplit

import pytest

from evosaga.orchestrator.cli import main
from evosaga.orchestrator.config.log_config import Redaction, _secrets, redaction
from evosaga.orchestrator.config.settings import SettingsError, load_settings

PASSWORD = "geheim-w0rd/kein@wort"
ENCODED = "geheim-w0rd%2Fkein%40wort"


@pytest.mark.parametrize(
    "line",
    [
        "postgresql://ana:geheim@host/db",
        "postgresql://ana:geheim@wort@host/db",
        'could not open "redis://:geheim/wort@host:6379/0" again',
        '{"url":"redis://:geheim?wort@host","mail":"a@b"}',
        "postgresql://ana@host/db?password=geheim&x=1",
        "POST /webhooks/evolution?token=geheim/connection-update HTTP/1.1",
    ],
)
def test_a_password_in_a_url_leaves_no_part_in_a_line(line: str) -> None:
    told = Redaction([])(None, "", line)
    assert "geheim" not in told
    assert "wort" not in told
    assert "[redacted]" in told


@pytest.mark.parametrize(
    "line", ["http://host:8080/a?mail=ana@sol.example", "see http://host/ or mail ana@sol.example"]
)
def test_what_only_looks_like_a_password_stays_readable(line: str) -> None:
    assert Redaction([])(None, "", line) == line


def test_what_a_library_made_of_the_configured_urls_is_taken_out_too() -> None:
    settings = load_settings(
        _env_file=None,
        database_url=f"postgresql://ana:{ENCODED}@host/db",
        redis_url="redis://:hush-hush-hush@cache/0",
    )
    redact = Redaction(_secrets(settings))
    told = redact(None, "", f"no host {PASSWORD!r}; {ENCODED}; port 'geheim-w0rd'; hush-hush-hush")
    for part in ("geheim", "w0rd", "hush"):
        assert part not in told


def test_a_password_of_a_first_attempt_does_not_make_the_log_unreadable() -> None:
    settings = load_settings(_env_file=None, database_url="postgresql://postgres:postgres@h/db")
    assert Redaction(_secrets(settings))(None, "", "postgres is up") == "postgres is up"


@pytest.mark.parametrize("variable", ["database_url", "redis_url"])
@pytest.mark.parametrize(
    "rest",
    [
        "ana:geh/eim@host/db",
        "ana:geh#eim@host/db",
        "ana:geh?eim@host/db",
        "ana:[geheim]@host/db",
        "ana:[geh@host/db",
        "ana:g@h/eim@host/db",
        "ana:12/geheim@host/db",
        "ana:geheim@host:port/db",
        "ana:geheim@host:99999/db",
    ],
)
def test_a_url_whose_password_would_be_misread_is_refused_without_a_word_of_it(
    variable: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = "postgresql" if variable == "database_url" else "redis"
    monkeypatch.setenv(f"EVOSAGA_{variable.upper()}", f"{scheme}://{rest}")
    with pytest.raises(SettingsError) as refused:
        load_settings(_env_file=None)
    said = str(refused.value)
    assert said.startswith(f"EVOSAGA_{variable.upper()}: can't be read as a URL")
    assert "percent-encoded" in said
    assert not any(part in said for part in ("geh", "eim", "ana", "99999"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ana:geheim%2F%40@host:5432/db?sslmode=require&user=a@b",
        "postgresql://postgres@/test?host=/tmp/folder",
        "postgresql://ana:p@ss@host/db",
        "postgresql://[::1]:5432/db",
    ],
)
def test_urls_as_people_have_them_are_read(url: str) -> None:
    read = load_settings(_env_file=None, database_url=url).database_url
    assert read is not None
    was, now = urlsplit(url), urlsplit(read)
    assert (was.netloc, was.path, parse_qsl(was.query)) == (
        now.netloc,
        now.path,
        parse_qsl(now.query),
    )


def test_a_traceback_holds_no_part_of_a_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVOSAGA_DATABASE_URL", f"postgresql://ana:{ENCODED}@host/db")
    monkeypatch.setenv("EVOSAGA_REDIS_URL", "redis://:hush-hush-hush@cache/0")

    def stumble(*_: object, **__: object) -> None:
        raise RuntimeError(f"no {PASSWORD}, no {ENCODED}, no 'geheim-w0rd', no hush-hush-hush")

    monkeypatch.setattr("evosaga.orchestrator.cli.dead_letters._letters", stumble)
    assert main(["letters"]) == 70
    told = "".join(capsys.readouterr())
    assert "RuntimeError" in told
    assert not any(part in told for part in ("geheim", "w0rd", "hush"))
    assert redaction()(None, "", "hush-hush-hush") == "[redacted]"
