"""What the command line says and understands, without any server."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import zxingcpp
from PIL import Image

from evosaga.orchestrator.cli import dev, main
from evosaga.orchestrator.cli.errors import CliError, place
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.render import draw_qr
from evosaga.orchestrator.cli.show import moment
from evosaga.orchestrator.cli.verbs import VERBS
from evosaga.orchestrator.config import log_config
from evosaga.orchestrator.config.settings import load_settings

ID = "0197a0de-0000-7000-8000-000000000001"
CREATE = ("create", "--organization-id", ID, "--clinic-id", ID)
HEAVY = ["aiohttp", "alembic", "asyncio", "asyncpg", "faststream", "httpx", "pydantic", "redis"]
HEAVY += ["rich", "sqlalchemy", "structlog"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["create", "--help"]])
def test_help_imports_nothing_heavy_so_it_is_there_at_once(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom evosaga.orchestrator.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
        f"sys.stderr.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), "it imported these"


def test_evosaga_alone_shows_every_verb_in_its_group_and_the_exit_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    said = capsys.readouterr().out
    assert end.value.code == 0
    for verb in VERBS:
        assert f"\n{verb.group}:\n" in said
        assert f"\n  {verb.name} " in said
    assert "Exit codes:\n  0   done\n" in said


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_help_of_every_verb_has_an_example_and_the_variables_it_needs(
    verb: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (known,) = [one for one in VERBS if one is verb]
    with pytest.raises(SystemExit) as end:
        main([known.name, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert f"example:\n  evosaga {known.name}" in said
    assert all(variable in said for variable in known.variables)


def test_every_verb_leads_to_a_function() -> None:
    assert all(callable(verb.load()) for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["dance"], "invalid choice: 'dance'"),
        (["create"], "required: --organization-id, --clinic-id, --name"),
        (["create", "--organization-id", "7"], "'7' is not a UUID"),
        ([*CREATE, "--name", "a\x07b"], "--name: must be UTF-8 text without control characters"),
        ([*CREATE, "--name", "\udcff"], "--name: must be UTF-8 text"),
        ([*CREATE, "--name", "Sol", "--timeout", "-1"], "--timeout"),
        (["doctor", "--bogus"], "evosaga doctor: error: unrecognized arguments: --bogus"),
        (["--bogus"], "evosaga: error: unrecognized arguments: --bogus"),
        (["list", "--limit", "0"], "'0' is not a number from 1 to 500"),
        (["list", "--status", "happy"], "invalid choice: 'happy'"),
        (["simulate-evolution", "--port", "70000"], "not a number from 0 to 65535"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_what_is_wrong(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*CREATE, "--name", "x" * 121], "evosaga: name: String should have at most 120"),
        ([*CREATE, "--name", "Sol", "--instance-name", "create"], "'create' means something else"),
        ([*CREATE, "--name", "Sol", "--number", "+55"], "evosaga: number: "),
        ([*CREATE, "--name", "Sol", "--webhook-url", "ftp://x"], "must be an http(s) URL"),
        ([*CREATE, "--name", "Sol", "--id", "x" * 201], "id must be a string of 1 to 200"),
        (["delete", "not/a/name"], "evosaga: instance_name: this name can't be handled"),
        (["list", "--since", "yesterday"], "--since 'yesterday' is no time"),
    ],
)
def test_bad_input_is_refused_before_anything_is_published_or_started(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_called_as_a_module_dev_names_a_command_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "orchestrator" / "cli" / "__main__.py")])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert dev._program() == f"{tmp_path}/bin/python -m evosaga.orchestrator.cli"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "evosaga").touch()
    assert dev._program() == f"{tmp_path}/bin/evosaga"
    monkeypatch.chdir(tmp_path)
    assert dev._program() == "bin/evosaga"


def test_a_moment_is_iso_or_so_long_ago() -> None:
    now = datetime(2025, 12, 5, 12, tzinfo=UTC)
    assert moment("90s", now) == now - timedelta(seconds=90)
    assert moment("2d", now) == now - timedelta(days=2)
    assert moment("2025-12-05T10:00", now) == now - timedelta(hours=2)
    assert moment("2025-12-05T10:00+02:00", now) == now - timedelta(hours=4)
    for nonsense in ("", "d", "-1h", "999999d", "2025-13-01", "0001-01-01T00:00+14:00"):
        with pytest.raises(CliError):
            moment(nonsense, now)


def test_an_address_is_shown_without_what_could_be_secret() -> None:
    assert place("postgresql://u:hunter2@db.example:5432/e?password=x") == "db.example:5432/e"
    assert place("postgresql://u@/evosaga?host=/run/pg&password=hunter2") == "/run/pg/evosaga"
    assert place("redis://:hunter2@cache:6379/0") == "cache:6379/0"
    assert place("unix:///run/valkey.sock") == "/run/valkey.sock"
    assert "hunter2" not in place("postgresql://u:hunter2@h:port/x")


def test_a_phone_can_read_the_qr_code_that_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    code = "2@" + "abcdefghij/+" * 20
    draw_qr(Output(), code)
    halves = {" ": (255, 255), "▀": (0, 255), "▄": (255, 0), "█": (0, 0)}
    lines = capsys.readouterr().out.splitlines()
    rows = [[halves[c][half] for c in line] for line in lines for half in (0, 1)]
    image = Image.new("L", (len(rows[0]), len(rows)))
    image.putdata([pixel for row in rows for pixel in row])
    larger = image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST)
    assert [found.text for found in zxingcpp.read_barcodes(larger)] == [code]


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """Puts everything about logging back afterwards."""
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.configure(**config)


def test_log_lines_are_json_on_stderr_and_hold_no_secret(
    unconfigured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(
        _env_file=None,
        log_format="json",
        log_level="info",
        evolution_api_key="the-global-key",
        secret_key=f"{'a' * 32},{'b' * 32}",
        api_keys=f"ops:the-ops-key-of-the-tests:{ID}",
    )
    log_config.configure(settings)
    logger = structlog.stdlib.get_logger("evosaga.test")
    logger.info("hello", key="the-global-key", old="b" * 32, url="redis://:hunter2@cache/0")
    logging.getLogger("somebody").warning("the-ops-key-of-the-tests of %s", "ops")
    logging.getLogger("httpx").info("GET /instance/connectionState/x")
    logger.debug("too low")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert first["event"] == "hello"
    assert (first["level"], first["logger"]) == ("info", "evosaga.test")
    assert (first["key"], first["old"]) == ("[redacted]", "[redacted]")
    assert first["url"] == "redis://:[redacted]@cache/0"
    assert second["event"] == "[redacted] of ops"
