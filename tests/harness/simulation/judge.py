"""What must be true when the faults are over: the invariants, read from the stores alone.

The ids are those of the project's list of invariants (S: safety, L: liveness). Histories are
judged by ``tests.support.laws``, which shares no code with the decider.
"""

from collections.abc import Iterator
from uuid import UUID

from evosaga.events.model import SagaRejected, SagaStarted, StepSucceeded
from evosaga.orchestrator.commands.testing.memory import Status
from evosaga.orchestrator.engine.decider import advance
from evosaga.orchestrator.engine.projection import status_row
from evosaga.orchestrator.engine.state import replay
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION
from evosaga.sagas.whatsapp.steps import routing_key
from tests.harness.simulation.cluster import Cluster
from tests.harness.simulation.database import CATALOGUE
from tests.harness.simulation.workers import KEYS
from tests.support.laws import LawBroken, chronicle


def problems(cluster: Cluster) -> list[str]:
    """Everything that is wrong in the end; empty when all is well."""
    found = [*cluster.broken, *(f"asyncio: {trouble}" for trouble in cluster.loop.troubles)]
    for saga in cluster.database.sagas.values():
        if not isinstance(saga.start, SagaRejected):
            found += (f"{saga.start.saga}: {problem}" for problem in _of_history(cluster, saga))
    found += _of_evolution(cluster)
    found += _of_the_stores(cluster)
    return found


def _of_history(cluster: Cluster, saga: Status) -> Iterator[str]:
    recorded = cluster.database.events[saga.saga_id]
    if [r.sequence for r in recorded] != list(range(saga.sequence)):
        yield "S1: its sequence has a gap"
    definition = CATALOGUE.find(saga.start.saga, saga.start.version)
    assert definition is not None
    try:
        told = chronicle(definition, (r.event for r in recorded))
    except LawBroken as broken:
        yield f"S2, S4, S7 or S13: {broken}"
        return
    if told.phase not in ("completed", "compensated"):
        yield f"L2: it is {told.phase} for ever"
    state = replay(r.event for r in recorded)
    expected = status_row(definition, state, advance(definition, state)[2], saga.owner)
    if (expected.status, expected.step, expected.code) != (
        saga.row.status,
        saga.row.step,
        saga.row.code,
    ):
        yield f"its row says {saga.row}, its history {expected}"


def _of_evolution(cluster: Cluster) -> Iterator[str]:
    mine = cluster.tokens()
    journal = cluster.evolution.journal
    for token in mine:
        created = sum(e.what == "created" and e.token == token for e in journal)
        removed = sum(e.what == "removed" and e.token == token for e in journal)
        if created > 1 + removed:
            yield f"S6: {created} creates and {removed} removals of one birthmark"
    for name, token in cluster.strangers.items():
        if name not in cluster.by_hand and cluster.evolution.rows.get(name) != token:
            yield f"S8: the stranger's instance {name} is gone"
    for entry in journal:
        if entry.what == "removed" and entry.key and entry.key not in mine:
            yield f"S8: {entry.name} was removed with a key that is not its birthmark"
    for saga_id in {s.saga_id for s in cluster.database.sagas.values()}:
        for recorded in cluster.database.events[saga_id]:
            event = recorded.event
            if (
                isinstance(event, StepSucceeded)
                and event.step == "evolution"
                and (event.result.get("token_hash"))
            ):
                token = KEYS.instance_token(saga_id, KEYS.current)
                at = recorded.recorded_at.timestamp() + 1e-5  # it has microseconds
                made = any(e.what == "created" and e.token == token and e.at <= at for e in journal)
                if not made:
                    yield "S9: a create succeeded that had made nothing"


def _of_the_stores(cluster: Cluster) -> Iterator[str]:
    """S10 and L3: all three stores say what the histories say, and nothing is left over."""
    db, expected = cluster.database, dict(cluster.strangers)
    made = dict(cluster.founded)
    for saga in db.sagas.values():
        if saga.start.saga == CREATE_INTEGRATION.name and saga.row.status == "completed":
            assert saga.start.instance_name is not None
            made[saga.saga_id] = saga.start.instance_name
    for saga in db.sagas.values():
        if saga.start.saga == DELETE_INTEGRATION.name and saga.row.status == "completed":
            assert isinstance(saga.start, SagaStarted)
            made.pop(UUID(saga.start.facts["integration_id"]), None)
    for id_, name in made.items():
        expected[name] = KEYS.instance_token(id_, KEYS.current)
        if id_ not in db.integrations:
            yield f"S11: {name} is completed and has no row"
        if routing_key.key(name) not in cluster.redis.keys and id_ not in cluster.founded:
            yield f"S12: {name} is completed and has no routing key"
    for view, what in ((cluster.evolution.memory, "memory"), (cluster.evolution.rows, "rows")):
        for name in expected.keys() | view.keys():
            if name not in cluster.by_hand and view.get(name) != expected.get(name):
                state = "is left over in" if name not in expected else "is not in"
                yield f"L3: {name} {state} Evolution's {what}"
    rows = {r.instance_name for r in db.integrations.values()}
    keys = {
        k.removeprefix(routing_key.key(""))
        for k in cluster.redis.keys
        if k.startswith(routing_key.key(""))
    }
    for name in (rows | keys) - expected.keys():
        yield f"S10: {name} is left over in the table or the cache"
