"""The explorer finds what it should: each mutant of the product must break a law."""

import pytest

import evosaga.orchestrator.engine.driver
from evosaga.events.model import SagaStarted
from tests.harness.simulation.explorer import Broken, begins_with, explore
from tests.harness.simulation.mutants import MUTANTS, Hidden
from tests.harness.simulation.scenarios import SCENARIOS
from tests.harness.simulation.test_engine import renewed_claim


def _id(hidden: Hidden) -> str:
    return hidden.mutant.__name__ + ("" if hidden.fenced else "_when_nobody_asks_the_lease")


@pytest.mark.parametrize("hidden", MUTANTS, ids=_id)
def test_the_explorer_catches_one_that(hidden: Hidden, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden.mutant(monkeypatch)
    mine = begins_with(hidden.first) if hidden.first else lambda *_: True
    with pytest.raises(Broken, match=hidden.breaks):
        explore(SCENARIOS[hidden.scenario], hidden.faults, fenced=hidden.fenced, mine=mine)


def test_one_that_takes_a_renewed_claim_for_the_old_one_speaks_for_a_living_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.engine.driver, "_CLAIMS", (SagaStarted,))
    assert "worker_lost" in renewed_claim()
