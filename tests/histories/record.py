"""Record how each released version of a saga goes: ``python -m tests.histories.record``.

Writes one file a story below ``tests/histories`` for every saga in the registry. A file
that exists is never written again: it stands for sagas that are open in somebody's database, so
what has been released must go on reading it. Run this once when a new version is released.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from evosaga.events.model import SagaCancelRequested, SagaEvent, SagaResumed, SagaStarted, data_json
from evosaga.orchestrator.engine.decider import Idle, Run, advance, attempt_lost, intent
from evosaga.orchestrator.engine.projection import LEASE_MARGIN
from evosaga.orchestrator.engine.state import State, evolve
from evosaga.sagas.definition import InCommit, Saga
from evosaga.sagas.registry import discover
from tests.support.given_when_then import out_of_time, step, undo

HISTORIES: Final = Path(__file__).parent

ORGANIZATION: Final = "0197f3a0-0000-7000-8000-00000000000a"
CLINIC: Final = "0197f3a0-0000-7000-8000-00000000000b"
COMMAND: Final = "0197f3a0-0000-7000-8000-0000000000c1"
NAME: Final = "wa-0197f3a00000"

INPUTS: Final[dict[str, dict[str, Any]]] = {
    "create-integration": {
        "organization_id": ORGANIZATION,
        "clinic_id": CLINIC,
        "name": "Clínica Sol",
        "channel": "WHATSAPP-BAILEYS",
    },
    "delete-integration": {"instance_name": NAME, "organization_id": ORGANIZATION},
    "watch-instance": {"instance_name": NAME, "created_by": COMMAND, "key_id": "0a1b2c3d"},
    "remove-orphan": {
        "instance_name": NAME,
        "organization_id": ORGANIZATION,
        "created_by": COMMAND,
        "key_id": "0a1b2c3d",
    },
    "correct-integration": {"integration_id": COMMAND, "instance_name": NAME, "seen": "missing"},
    "adopt-instance": {
        "organization_id": ORGANIZATION,
        "integration_id": COMMAND,
        "instance_name": NAME,
        "token_hash": "0123456789abcdef",
        "seen": "open",
    },
    "complete-instance": {"integration_id": COMMAND, "instance_name": NAME},
    "drop-key": {"instance_name": NAME},
}

FACTS: Final[dict[str, dict[str, Any]]] = {
    "create-integration": {"instance_name": NAME, "created_by": COMMAND, "key_id": "0a1b2c3d"},
    "delete-integration": {
        "instance_name": NAME,
        "integration_id": COMMAND,
        "created_by": COMMAND,
        "status": "connected",
        "clinic_id": CLINIC,
        "organization_id": ORGANIZATION,
        "key_id": "0a1b2c3d",
    },
    "watch-instance": {"instance_name": NAME, "created_by": COMMAND, "key_id": "0a1b2c3d"},
    "remove-orphan": {
        "instance_name": NAME,
        "created_by": COMMAND,
        "organization_id": ORGANIZATION,
        "key_id": "0a1b2c3d",
    },
    "correct-integration": {
        "instance_name": NAME,
        "before": NAME,
        "integration_id": COMMAND,
        "created_by": COMMAND,
        "organization_id": ORGANIZATION,
        "clinic_id": CLINIC,
        "status": "connected",
        "key_id": "0a1b2c3d",
    },
    "adopt-instance": {
        "instance_name": NAME,
        "before": "wa-0197f3a00001",
        "integration_id": COMMAND,
        "created_by": COMMAND,
        "organization_id": ORGANIZATION,
        "clinic_id": CLINIC,
        "status": "pending",
    },
    "complete-instance": {
        "instance_name": NAME,
        "integration_id": COMMAND,
        "created_by": COMMAND,
        "organization_id": ORGANIZATION,
        "key_id": "0a1b2c3d",
        "server": "default",
        "webhook_url": f"https://evosaga.example/webhooks/evolution/{NAME}",
        "foreign": False,
    },
    "drop-key": {"instance_name": NAME},
}

STORIES: Final[dict[str, dict[str, str]]] = {
    "create-integration": {
        "completed": "",
        "refused by evolution": "rejected",
        "refused by postgres": "done rejected",
        "refused by the cache": "done done rejected",
        "unknown, then adopted": "unknown done",
        "unknown to the end": "unknown unknown unknown unknown",
        "unknown, then refused": "unknown rejected",
        "worker lost": "lost done done lost done",
        "workers lost beside its own attempts": "lost unknown lost unknown lost unknown unknown",
        "workers lost without end": "lost " * 12,
        "worker lost while undoing": "done rejected lost",
        "held by an outage": "held held done done held doubtful-hold done",
        "held while undoing": "done rejected held held done",
        "parked at notify": "done done done rejected",
        "parked at notify and resumed": "done done done unknown rejected resume",
        "undo stuck": "done rejected unknown unknown unknown unknown",
        "undo stuck and resumed": "done rejected unknown unknown unknown unknown resume",
        "undo stuck and cancelled": "done rejected rejected unknown lost unknown cancel",
        "cancelled during the first step": "cancel done",
        "cancelled in doubt": "done done cancel unknown",
        "cancelled too late": "done done done cancel done",
        "out of time during an outage": "done held held deadline",
    },
    "delete-integration": {
        "completed": "",
        "refused at mark": "rejected",
        "waited for the saga ahead": "held held done",
        "waited for a saga that was parked": "held rejected",
        "refused at the pivot": "done rejected",
        "unknown at the pivot, then gone": "done unknown done",
        "pivot refused in doubt": "done unknown rejected",
        "pivot refused in doubt and resumed": "done unknown rejected resume",
        "pivot unknown to the end": f"done {'unknown ' * 10}",
        "worker lost": "done lost",
        "held by an outage": "done held held done done held",
        "parked at the cache": "done done done rejected",
        "parked at the cache and resumed": "done done done unknown rejected resume held",
        "cancelled before the pivot": "cancel done",
        "cancelled at the pivot while held": "done cancel held",
        "cancelled at the pivot, too late": "done cancel done",
    },
    "remove-orphan": {
        "completed": "",
        "held by an outage": "held doubtful-hold done held done",
        "refused at the pivot": "rejected",
        "unknown at the pivot, then gone": "unknown done",
        "pivot unknown to the end": "unknown " * 10,
        "worker lost": "lost done lost",
    },
    "correct-integration": {
        "completed": "",
        "no longer so": "rejected",
        "changed meanwhile": "done rejected",
        "held by an outage": "held held done done held done",
        "worker lost": "lost done done lost",
        "cancelled during the look": "cancel done",
    },
    "adopt-instance": {
        "completed": "",
        "no longer so": "rejected",
        "changed meanwhile": "done rejected",
        "worker lost": "lost done done lost done lost",
    },
    "complete-instance": {
        "completed": "",
        "no longer so": "rejected",
        "held by an outage": "held doubtful-hold held done",
        "unknown to the end": "unknown unknown unknown unknown",
        "worker lost": "lost done",
    },
    "drop-key": {
        "completed": "",
        "held by an outage": "held held done",
        "parked and resumed": "rejected resume",
    },
    "watch-instance": {
        "completed": "held done held done held done held done",
        "worker lost": "held lost",
    },
}
"""What happens, attempt by attempt; when the words run out, everything succeeds."""


PEOPLE: Final[dict[str, SagaEvent]] = {
    "cancel": SagaCancelRequested(by="a person"),
    "resume": SagaResumed(by="a person", reason="the server is back"),
    "deadline": out_of_time(),
}
"""What is said from outside, by whoever looks at the saga."""


def play(saga: Saga, words: str) -> list[SagaEvent]:
    """The history of a saga to which that happens."""
    events: list[SagaEvent] = [beginning(saga, words)]
    state, script = evolve(State(), events[0]), iter(words.split())
    word = next(script, "")
    while True:
        decided, state, action = advance(saga, state)
        events += decided
        if isinstance(action, Run) and word != "deadline":
            claim = intent(action, "worker-1", lease(action))
            events.append(claim)
            state = evolve(state, claim)
            continue
        if word in PEOPLE:
            said = PEOPLE[word]
        elif action == Idle("in flight"):
            said = outcome(state, word or "done")
        else:
            assert not word, f"the saga rests ({action}), so {word!r} can't happen"
            return events
        word = next(script, "")
        events.append(said)
        state = evolve(state, said)


def beginning(saga: Saga, words: str = "") -> SagaStarted:
    return SagaStarted(
        saga=saga.name,
        version=saga.version,
        command=saga.command,
        command_id=COMMAND,
        command_hash="0" * 64,
        business_key=f"whatsapp/evolution/{ORGANIZATION}",
        organization_id=ORGANIZATION,
        instance_name=NAME,
        input=INPUTS[saga.name],
        facts=FACTS[saga.name],
        deadline_seconds=900.0 if "deadline" in words else None,
    )


def lease(run: Run) -> float:
    return 0.0 if isinstance(run.effect, InCommit) else run.step.timeout + LEASE_MARGIN


def outcome(state: State, word: str) -> SagaEvent:
    """The event for an outcome of the attempt in flight."""
    flight = state.in_flight
    assert flight is not None
    tell, name, n = step if flight.direction == "forward" else undo, flight.step, flight.attempt
    match word:
        case "done":
            return tell.succeeded(name, n)[1]
        case "rejected":
            return tell.rejected(name, n)[1]
        case "unknown":
            return tell.unknown(name, n)[1]
        case "held":
            return tell.held(name, n, retry_after=30.0)[1]
        case "doubtful-hold":
            return tell.held(name, n, in_doubt=True)[1]
        case "lost":
            return attempt_lost(state)
        case _:
            raise ValueError(f"no outcome is called {word!r}")


def file_of(saga: Saga, story: str) -> Path:
    words = "".join(c if c.isalnum() else " " for c in story).split()
    return HISTORIES / f"{saga.name}.v{saga.version}.{'-'.join(words)}.json"


def as_json(saga: Saga, story: str, events: Iterable[SagaEvent]) -> str:
    """One event a line, so that a person can read it."""
    lines = ",\n    ".join(
        json.dumps({"type": e.type, "data": json.loads(data_json(e))}, ensure_ascii=False)
        for e in events
    )
    head = json.dumps({"saga": saga.name, "version": saga.version, "story": story})[1:-1]
    return f'{{\n  {head},\n  "events": [\n    {lines}\n  ]\n}}\n'


def missing() -> Iterator[tuple[Path, Saga, str, str]]:
    """What is in the registry and has not been recorded."""
    for saga in discover().versions.values():
        for story, words in STORIES.get(saga.name, {"completed": ""}).items():
            path = file_of(saga, story)
            if not path.exists():
                yield path, saga, story, words


def main() -> None:
    """Record what is missing."""
    for path, saga, story, words in list(missing()):
        path.write_text(as_json(saga, story, play(saga, words)))
        print(path.name)


if __name__ == "__main__":
    main()
