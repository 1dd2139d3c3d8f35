"""The completion scripts, tried in the shells that this machine has."""

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from evosaga.orchestrator.cli import main
from evosaga.orchestrator.cli.verbs import app

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the verb prints for each shell, which takes it a second."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["completion", shell]) == 0
        (folder / f"evosaga.{shell}").write_text(printed.getvalue())
    return folder


def ran(shell: str, *arguments: str) -> list[str]:
    """The lines that a shell prints, in order."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed here")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.split("\n")[:-1])


def in_bash(scripts: Path, line: str) -> list[str]:
    """What bash offers at the end of the line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    ask = (
        f"source {scripts}/evosaga.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "_evosaga; "
        'for word in "${COMPREPLY[@]}"; do echo "$word"; done'
    )
    return ran("bash", "--norc", "--noprofile", "-c", ask)


def in_fish(scripts: Path, line: str) -> list[str]:
    ask = f"source {scripts}/evosaga.fish; complete -C '{line}'"
    return sorted(offer.split("\t")[0] for offer in ran("fish", "--no-config", "-c", ask))


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("evosaga rep", ["replay"]),
        ("evosaga che", ["check-deploy"]),
        ("evosaga replay --p", ["--plan", "--profile"]),
        ("evosaga replay --status ", ["compensated", "failed"]),
        ("evosaga --json list --status comp", ["compensated", "compensating", "completed"]),
        ("evosaga create --channel E", ["EVOLUTION"]),
        ("evosaga create --name ", []),
        ("evosaga events rep", ["republish"]),
        ("evosaga events --f", ["--follow"]),
        ("evosaga events republish --s", ["--since"]),
        ("evosaga events republish --f", []),
        ("evosaga completion ", ["bash", "fish", "zsh"]),
        ("evosaga list --js", ["--json"]),
    ],
)
def test_the_shell_offers_what_fits(
    scripts: Path, shell: str, line: str, offered: list[str]
) -> None:
    found = {"bash": in_bash, "fish": in_fish}[shell](scripts, line)
    # Some offer options as well where a value may stand, some only once a dash is typed.
    assert [word for word in found if line[-1] != " " or word[:2] != "--"] == offered


def test_bash_offers_files_where_a_file_is_wanted(scripts: Path) -> None:
    (scripts / "journal.jsonl").touch()
    found = in_bash(scripts, f"evosaga simulate-evolution --journal {scripts}/jou")
    assert found == [f"{scripts}/journal.jsonl"]


def test_bash_completes_a_value_that_is_joined_with_an_equals_sign(scripts: Path) -> None:
    """Bash takes the sign for a word of its own."""
    assert in_bash(scripts, "evosaga replay --status =") == ["compensated", "failed"]
    assert in_bash(scripts, "evosaga replay --status = comp") == ["compensated"]


def test_in_zsh_the_script_can_be_evaluated_as_the_documentation_says(scripts: Path) -> None:
    """Cyclopts' own is only good as a file in a folder of ``$fpath``."""
    assert "compdef _cyclopts_evosaga evosaga" in (scripts / "evosaga.zsh").read_text()


def test_zsh_takes_the_script(scripts: Path) -> None:
    ran("zsh", "-f", "-n", str(scripts / "evosaga.zsh"))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_every_option_of_it_is_in_the_script(scripts: Path, shell: str) -> None:
    text = (scripts / f"evosaga.{shell}").read_text()
    for name in (name for name in app if not name.startswith("-")):
        assert name in text
        for argument in app[name].assemble_argument_collection():
            if argument.parse and argument.name.startswith("--"):
                assert argument.name[2:] in text
