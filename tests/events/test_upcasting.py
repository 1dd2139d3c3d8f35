"""M8: what older releases stored is read in today's words, and stays as it was stored."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evosaga.events import upcasting
from evosaga.events.model import data_json, event_from
from evosaga.events.upcasting import UPCASTS, upcast
from evosaga.sagas.whatsapp.create_integration import CreateIntegration

HISTORIES = sorted((Path(__file__).parents[1] / "histories").glob("*.json"))
ON_EVOLUTION = (
    "create-integration",
    "delete-integration",
    "watch-instance",
    "adopt-instance",
    "correct-integration",
    "remove-orphan",
)


def started(path: Path) -> dict[str, Any]:
    """The stored data of a recorded history's first event."""
    first = json.loads(path.read_text())["events"][0]
    assert first["type"] == "saga.started"
    return dict(first["data"])


def of_the_first_release() -> list[Path]:
    """Recordings from before an Evolution server had a name."""
    return [
        path
        for path in HISTORIES
        if path.name.startswith(ON_EVOLUTION) and "server" not in started(path)["facts"]
    ]


def test_there_are_histories_of_the_first_release_for_each_saga_that_needs_evolution() -> None:
    sagas = {started(path)["saga"] for path in of_the_first_release()}
    assert sagas == set(ON_EVOLUTION)


@pytest.mark.parametrize("path", of_the_first_release(), ids=lambda path: path.stem)
def test_a_saga_from_before_servers_had_names_is_on_the_only_one_there_was(path: Path) -> None:
    stored = started(path)
    before = copy.deepcopy(stored)
    event: Any = event_from("saga.started", stored)
    assert event.facts == {**stored["facts"], "server": "default"}
    assert stored == before, "what is stored is not touched"


def test_a_saga_that_needs_no_server_gets_none() -> None:
    paths = [path for path in HISTORIES if path.name.startswith("drop-key")]
    assert paths
    for path in paths:
        assert event_from("saga.started", started(path)).facts == started(path)["facts"]  # type: ignore[union-attr]


@pytest.mark.parametrize("type_", UPCASTS)
def test_what_this_release_writes_is_left_as_it_is(type_: str) -> None:
    assert type_ == "saga.started"
    for path in of_the_first_release():
        today = json.loads(data_json(event_from(type_, started(path))))
        assert upcast(type_, today) == today
        pinned = {**today, "facts": {**today["facts"], "server": "berlin"}}
        assert upcast(type_, pinned) == pinned, "a name that was written down stays"


def test_a_create_that_names_no_server_is_recorded_as_it_always_was() -> None:
    """So a worker of an older release, which knows no such word, can still go on with it."""
    path = next(path for path in of_the_first_release() if "create-integration" in path.name)
    wanted = CreateIntegration.model_validate(started(path)["input"])
    assert set(wanted.model_dump(mode="json")) == {
        *("organization_id", "clinic_id", "name", "instance_name"),
        *("channel", "number", "webhook_url"),
    }
    named = CreateIntegration.model_validate(started(path)["input"] | {"server": "berlin"})
    assert named.model_dump(mode="json")["server"] == "berlin"


def test_a_type_that_no_release_has_ever_written_is_none_of_its_business() -> None:
    data = {"saga": "create-integration", "facts": {}}
    assert upcast("saga.foreseen", data) is data


def test_a_verb_that_only_reads_histories_reads_them_in_todays_words() -> None:
    code = (
        "import evosaga.orchestrator.cli.connections; from evosaga.events import upcasting; "
        "print(*upcasting.UPCASTS)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["saga.started"]


def test_a_domains_upcasts_are_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upcasting, "UPCASTS", {})
    for _ in range(2):
        upcasting.register({"step.failed": (dict,)})
    assert {"step.failed": (dict,)} == upcasting.UPCASTS
