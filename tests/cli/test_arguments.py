"""What the command line says and understands, without any server."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import zxingcpp
from cyclopts import Group
from PIL import Image

from evosaga.orchestrator.cli import dev_page, main, verbs
from evosaga.orchestrator.cli.errors import CliError, place
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.render import draw_qr
from evosaga.orchestrator.cli.show import moment
from evosaga.orchestrator.cli.usage import read_words
from evosaga.orchestrator.config import log_config
from evosaga.orchestrator.config.settings import load_settings

ID = "0197a0de-0000-7000-8000-000000000001"
CREATE = ("create", "--organization-id", ID, "--clinic-id", ID)
VERBS = tuple(name for name in verbs.app if not name.startswith("-"))
HEAVY = ["aiohttp", "alembic", "asyncpg", "fastapi", "faststream", "httpx", "pydantic", "redis"]
HEAVY += ["sqlalchemy", "structlog"]


def test_help_imports_nothing_heavy_so_it_is_there_at_once() -> None:
    code = (
        "import json, sys\nfrom evosaga.orchestrator.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    code = main(arguments)\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    if code or heavy: sys.exit(f'{arguments} ended with {code} and imported {heavy}')\n"
    )
    every = [[], ["--help"], *([verb, "--help"] for verb in VERBS)]
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(every)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("Usage") == len(every)


def test_evosaga_alone_shows_every_verb_in_its_group_and_the_exit_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for verb in VERBS:
        groups = verbs.app[verb].group
        assert isinstance(groups, tuple)
        (group,) = groups
        assert isinstance(group, Group)
        assert f"\n{group.name}:\n" in said
        assert f"\n  {verb} " in said
    assert "Exit codes:\n  0   done\n" in said


@pytest.mark.parametrize("verb", [*VERBS, "events republish"])
def test_the_help_of_every_verb_has_an_example_in_plain_text(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"example:\n  evosaga {verb}" in said
    assert not re.search(r"^  --\S+( \S+)?$", said, re.MULTILINE), "an option without a word on it"
    assert not set("╭│╰\x1b") & set(said)


def test_help_names_the_variables_that_a_verb_needs(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, variable in (
        ("status", "EVOSAGA_DATABASE_URL"),
        ("create", "EVOSAGA_REDIS_URL"),
        ("worker", "EVOSAGA_SECRET_KEY"),
        ("serve", "EVOSAGA_API_KEYS"),
        ("events republish", "EVOSAGA_REDIS_URL"),
    ):
        assert main([*verb.split(), "--help"]) == 0
        assert f"\n  {variable} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stauts"], "unknown verb 'stauts', did you mean status? (see `evosaga --help`)"),
        (["dance"], "unknown verb 'dance' (see `evosaga --help`)"),
        (["--jsn"], "unknown option '--jsn', did you mean --json? (see `evosaga --help`)"),
        (
            ["create"],
            "missing: --organization-id, --clinic-id, --name (see `evosaga create",
        ),
        (
            ["create", "--name=Sol", "--clinic-id"],
            "--clinic-id needs a value (see",
        ),
        (["create", "--name=Sol"], "missing: --organization-id, --clinic-id (see"),
        (["status"], "missing: ID"),
        (["events", "republish"], "missing: --since (see `evosaga events republish --help`)"),
        (["create", "--organization-id", "7"], "--organization-id: '7' is not a UUID"),
        ([*CREATE, "--name", "a\x07b"], "--name: must be UTF-8 text without control characters"),
        ([*CREATE, "--name", "a\0b"], "--name: must be UTF-8 text without control characters"),
        ([*CREATE, "--name", "\udcff"], "--name: must be UTF-8 text"),
        ([*CREATE, "--name", ""], "--name: must be UTF-8 text"),
        (
            [*CREATE, "--name", "--json"],
            "--name needs a value (see",
        ),
        (
            [*CREATE, "--name", "-x"],
            "--name needs a value; one that begins with a dash goes like --n",
        ),
        (["list", "--limit"], "--limit needs a value (see `evosaga list --help`)"),
        (["list", "--json=maybe"], "--json is given or not, and has no value"),
        (["simulate-evolution", "--seed", "x"], "--seed: 'x' is not a whole number"),
        ([*CREATE, "--name", "Sol", "--timeout", "-1"], "--timeout: '-1' is not a number, 0 or"),
        ([*CREATE, "--name", "Sol", "--timeout", "nan"], "--timeout: 'nan' is not a number"),
        (["status", "\x1b[2J"], "ID: must be UTF-8 text without control characters"),
        (["replay", "a", ""], "ID: must be UTF-8 text without control characters, not empty"),
        (["replay", "a", "--reason", "x" * 501], "--reason: must be at most 500 characters"),
        (["doctor", "--bogus"], "unknown option '--bogus' (see `evosaga doctor --help`)"),
        (["doctor", "now"], "unexpected: 'now' (see `evosaga doctor --help`)"),
        (["list", "--stats", "failed"], "unknown option '--stats', did you mean --status?"),
        (["list", "--josn"], "unknown option '--josn', did you mean --json?"),
        (["status", "x", "--debgu"], "unknown option '--debgu', did you mean --debug?"),
        (["letters", "--remove"], "--remove needs a value"),
        (["list", "--limit", "0"], "--limit: '0' is not a number from 1 to 500"),
        (
            ["list", "--status", "happy"],
            "--status: 'happy' is none of running, compensating, completed",
        ),
        (["list", "--\x1b[2J"], r"unknown option '--\x1b[2J'"),
        (["letters", "--remove", "1-0", "all"], "--remove: 'all' is no letter's id"),
        (
            ["simulate-evolution", "--port", "70000"],
            "--port: '70000' is not a number from 0 to",
        ),
        (["completion", "tcsh"], "SHELL: 'tcsh' is none of bash, zsh, fish"),
    ],
)
def test_wrong_usage_is_one_sentence_with_exit_code_2_that_names_what_is_wrong(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"evosaga: {sentence}")
    assert captured.err.endswith(" --help`)\n")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_a_flag_that_all_verbs_have_is_one_before_and_after_the_verb_but_not_in_a_value() -> None:
    for words, json_, debug in (
        (["--json", "status", "x"], True, False),
        (["status", "x", "--json", "--debug"], True, True),
        (["--debug", "events", "--json", "x"], True, True),
        (["status", "--", "--json"], False, False),
        ([*CREATE, "--name=--json"], False, False),
    ):
        call = read_words(words)
        assert (call.json, call.debug) == (json_, debug), words


def test_the_front_page_is_drawn_without_the_libraries_that_take_long_to_import() -> None:
    slow = ["cyclopts", "rich", "dataclasses", "asyncio"]
    code = (
        "import sys\nfrom evosaga.orchestrator.cli import main\nassert not main(sys.argv[1:])\n"
        f"sys.stderr.write(' '.join(name for name in {slow!r} if name in sys.modules))"
    )
    for option in ("--help", "--version"):
        ran = subprocess.run(
            [sys.executable, "-c", code, option],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stderr == "", option


def test_the_front_page_names_every_exit_code_and_fits_any_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= max(columns, 43), "the longest command of the examples"
        told = {line.split()[0] for line in lines[lines.index("Exit codes:") + 1 :]}
        assert {"0", "1", "2", "3", "70", "130"} <= told


def test_an_id_is_never_cut_however_narrow_the_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"began": "Nov 30 15:41:16", "status": "completed", "instance": f"wa-{ID}", "why": "x y"}
    for columns in (40, 60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Output()
        out.terminal = True
        out.table([row, row], spare=("began",), wrap=("why",))
        out.fact("organization", ID)
        said = capsys.readouterr().out
        assert said.count(f"wa-{ID}") == 2, said
        assert f"\n  {ID}\n" in said if columns == 40 else f"organization:  {ID}\n" in said


def test_of_an_option_that_is_repeated_the_last_one_counts() -> None:
    call = read_words(["list", "--limit", "5", "--code", "a", "--limit=7"])
    assert call.bound.arguments == {"limit": 7, "code": "a"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*CREATE, "--name", "x" * 121], "evosaga: name: must be at most 120 characters"),
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
    assert dev_page._program() == f"{tmp_path}/bin/python -m evosaga.orchestrator.cli"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "evosaga").touch()
    assert dev_page._program() == f"{tmp_path}/bin/evosaga"
    monkeypatch.chdir(tmp_path)
    assert dev_page._program() == "bin/evosaga"


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


@pytest.mark.parametrize(
    ("said", "there"),
    [
        ({}, True),
        ({"EVOSAGA_WHATSAPP": "false"}, False),
        ({"EVOSAGA_APP": "hotel.sagas"}, False),
        ({"EVOSAGA_APP": "hotel.sagas", "EVOSAGA_EVOLUTION_URL": "http://e"}, True),
        ({"EVOSAGA_APP": "hotel.sagas", "EVOSAGA_WHATSAPP": "true"}, True),
    ],
)
def test_the_front_page_shows_verbs_of_whatsapp_only_where_it_is_run(
    said: dict[str, str],
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("APP", "WHATSAPP", "EVOLUTION_URL", "EVOLUTION_SERVERS"):
        monkeypatch.delenv(f"EVOSAGA_{name}", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert main(["--help"]) == 0
    words = capsys.readouterr().out.split()
    assert ("reconcile" in words, "start" in words) == (there, True)
