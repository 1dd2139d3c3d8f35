"""A small run of ``make chaos`` on every change, so that the tool itself stays honest."""

import json
from typing import Any

import pytest

from tests.harness.chaos.faults import BASE_POINTS
from tests.harness.chaos.judge import judge
from tests.harness.chaos.plan import Plan, make_plan
from tests.harness.chaos.report import summary, table, trouble
from tests.harness.chaos.run import run
from tests.harness.chaos.stage import Options

MODES: dict[str, dict[str, Any]] = {
    "slow": {"operations": ["create", "delete"], "parameters": ["seconds"]},
    "cut": {"operations": ["create"], "parameters": ["bytes"]},
    "late": {"operations": ["create"], "parameters": ["seconds", "reply"]},
}


def planned(seed: int, sagas: int = 1000) -> Plan:
    return make_plan(seed, sagas=sagas, seconds=100.0, workers=4, version="2.3.7", modes=MODES)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert planned(1) == planned(1)
    assert planned(1).mark == planned(1).mark != planned(2).mark


def test_a_long_plan_strikes_every_sync_point_and_uses_every_mode_and_ends_in_time() -> None:
    plan = planned(3)
    struck = {strike.how["at"].partition(":")[0] for strike in plan.faults if strike.kind == "sync"}
    assert struck == set(BASE_POINTS)
    assert {s.how["mode"] for s in plan.faults if s.kind == "mode"} >= set(MODES)
    assert {"kill", "stop", "proxy", "flush", "aof.restore"} <= {s.kind for s in plan.faults}
    assert all(0 <= p.at <= 100 for p in plan.load)
    assert {"create", "delete", "cancel", "replay", "conflict", "poison"} == {
        p.kind for p in plan.load
    }


@pytest.mark.long
@pytest.mark.parametrize("clustered", [False, True], ids=["single", "cluster"])
async def test_a_small_run_loses_nothing_and_says_so(clustered: bool) -> None:
    said: list[str] = []
    options = Options(
        seed=5, minutes=0.15, sagas=70, version="2.3.7", drills=0, clustered=clustered
    )
    outcome = await run(options, said.append)
    verdict = judge(outcome)
    assert not verdict.violations, trouble(outcome, verdict)
    told = summary(outcome, verdict)
    print(table(told))
    assert told["sagas"]["all"] >= 60
    assert told["faults"]["all"] >= 8
    assert set(told["must be none"].values()) == {0}
    assert told["seconds from the heal to rest"] is not None
    assert not told["workers that ended by themselves"]
    assert json.loads(json.dumps(told))["plan"] == outcome.plan.mark
    assert said
