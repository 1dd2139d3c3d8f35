"""Completion: tried in the shells that this machine has, and read where it has none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from evosaga.orchestrator.cli import completion, main
from evosaga.orchestrator.cli.parser import actions_of
from evosaga.orchestrator.cli.verbs import VERBS

SHELLS = {"bash": completion.bash, "zsh": completion.zsh, "fish": completion.fish}


def script(folder: Path, shell: str) -> Path:
    path = folder / f"evosaga.{shell}"
    path.write_text(SHELLS[shell]())
    return path


def ran(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.split("\n")[:-1])


def installed(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed here")
    return found


def in_bash(path: Path, line: str) -> list[str]:
    """What bash offers at the end of the line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    ask = (
        f"source {path}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _evosaga; "
        'for word in "${COMPREPLY[@]}"; do echo "$word"; done'
    )
    return ran(installed("bash"), "--norc", "--noprofile", "-c", ask)


def in_fish(path: Path, line: str) -> list[str]:
    ask = f"source {path}; complete -C '{line}'"
    return sorted(
        offer.split("\t")[0] for offer in ran(installed("fish"), "--no-config", "-c", ask)
    )


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("evosaga rep", ["replay"]),
        ("evosaga che", ["check-deploy"]),
        ("evosaga replay --p", ["--plan"]),
        ("evosaga replay --status ", ["compensated", "failed"]),
        ("evosaga --json list --status comp", ["compensated", "compensating", "completed"]),
        ("evosaga create --channel E", ["EVOLUTION"]),
        ("evosaga create --name ", []),
        ("evosaga events rep", ["republish"]),
        ("evosaga events --f", ["--follow"]),
        ("evosaga events republish --s", ["--since"]),
        ("evosaga events republish --f", []),
        ("evosaga completion ", ["bash", "fish", "zsh"]),
    ],
)
def test_the_shell_offers_what_fits(
    tmp_path: Path, shell: str, line: str, offered: list[str]
) -> None:
    ask = {"bash": in_bash, "fish": in_fish}[shell]
    found = ask(script(tmp_path, shell), line)
    # Some offer options as well where a value may stand, some only once a dash is typed.
    assert [word for word in found if line[-1] != " " or word[:2] != "--"] == offered


def test_bash_offers_files_where_a_file_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    path = script(tmp_path, "bash")
    found = in_bash(path, f"evosaga simulate-evolution --journal {tmp_path}/jou")
    assert found == [f"{tmp_path}/journal.jsonl"]


def test_bash_completes_a_value_that_is_joined_with_an_equals_sign(tmp_path: Path) -> None:
    """Bash takes the sign for a word of its own."""
    path = script(tmp_path, "bash")
    assert in_bash(path, "evosaga replay --status =") == ["compensated", "failed"]
    assert in_bash(path, "evosaga replay --status = comp") == ["compensated"]


def test_zsh_takes_the_script(tmp_path: Path) -> None:
    ran(installed("zsh"), "-f", "-n", str(script(tmp_path, "zsh")))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_every_option_of_it_is_in_the_script(shell: str) -> None:
    text = SHELLS[shell]()
    for verb in VERBS:
        assert all(word in text for word in verb.name.split(" "))
        for action in actions_of(verb.name):
            for name in action.option_strings[-1:]:
                assert (f"-l {name[2:]} " if shell == "fish" else name) in text
            assert all(str(choice) in text for choice in action.choices or ())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_verb_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out.strip() == SHELLS[shell]().strip()
