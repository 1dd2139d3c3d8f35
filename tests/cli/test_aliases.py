"""Other words for the same verbs, ``help VERB``, short options and words for statuses. Pure."""

import pytest

from evosaga.orchestrator.cli.aliases import GROUPS, resolved
from evosaga.orchestrator.cli.errors import CliError
from evosaga.orchestrator.cli.verb_table import VERBS

NAMES = [verb.name for verb in VERBS]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("sagas list --status failed", "list --status failed"),
        ("sagas show ID", "status ID"),
        ("--json sagas why ID", "--json why ID"),
        ("-j integrations create --name X", "-j create --name X"),
        ("drifts repair --timeout 5", "reconcile --fix --timeout 5"),
        ("dead-letters remove 1-0", "letters --remove 1-0"),
        ("help replay", "replay --help"),
        ("help sagas list", "list --help"),
        ("help", "--help"),
        ("list --status parked", "list --status failed"),
        ("list --status=Rolled-Back", "list --status=compensated"),
        ("list --status held", "list --status held"),
        ("list", "list"),
        ("status list", "status list"),
        ("", ""),
    ],
)
def test_words_become_todays_names(words: str, meant: str) -> None:
    assert resolved(words.split(), NAMES) == meant.split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sagas lst", "did you mean list?"),
        ("dead-letters", "evosaga dead-letters list|remove"),
        ("drifts mend", "evosaga drifts list|repair"),
    ],
)
def test_an_unknown_word_behind_a_group_names_those_that_there_are(words: str, said: str) -> None:
    with pytest.raises(CliError, match="evosaga") as refused:
        resolved(words.split(), NAMES)
    assert said in refused.value.sentence
    assert refused.value.code == 2


def test_a_group_that_has_verbs_of_its_own_keeps_them() -> None:
    assert resolved(["integrations", "list"], [*NAMES, "integrations"]) == ["integrations", "list"]


def test_every_group_leads_to_verbs_that_there_are() -> None:
    for group in GROUPS.values():
        assert {words[0] for words in group.values()} <= set(NAMES)
