"""Which server a verb speaks to, when a folder's ``.env`` has a say in it."""

from pathlib import Path

import pytest

from evosaga.orchestrator.cli.errors import CliError
from evosaga.orchestrator.cli.remote.target import Wish, target_of, variables

THEIRS = "EVOSAGA_URL=https://elsewhere.example.com\n"
KEY = "a-key-of-the-environment"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("EVOSAGA_URL", "EVOSAGA_API_KEY", "EVOSAGA_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_key_of_the_environment_does_not_go_where_a_folder_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text(THEIRS)
    monkeypatch.setenv("EVOSAGA_API_KEY", KEY)
    with pytest.raises(CliError, match="set EVOSAGA_URL as well, or give --url"):
        variables(Wish())
    asked = Wish(url="https://ours.example.com")
    chosen = target_of(asked, variables(asked))
    assert chosen is not None
    assert (chosen.url, chosen.api_key) == ("https://ours.example.com", KEY)


def test_a_folder_that_names_both_is_believed(folder: Path) -> None:
    (folder / ".env").write_text(f"{THEIRS}EVOSAGA_API_KEY=a-key-of-the-folder\n")
    chosen = target_of(Wish(), variables(Wish()))
    assert chosen is not None
    assert (chosen.url, chosen.api_key) == ("https://elsewhere.example.com", "a-key-of-the-folder")
