"""The two views of the instances, for tests and operators."""

from dataclasses import dataclass

from evosaga.orchestrator.local.evolution.instances import World
from evosaga.orchestrator.local.evolution.journal import fingerprint


@dataclass(frozen=True, slots=True)
class View:
    """One instance as one of the two views shows it."""

    name: str
    instance_id: str
    token_hash: str
    state: str
    integration: str
    owner_jid: str | None
    webhook: bool = False  # whether the database has the rows that belong to it
    settings: bool = False


def live(world: World) -> dict[str, View]:
    """The instances in the process's memory."""
    return {
        it.name: View(it.name, it.id, fingerprint(it.token), it.state, it.integration, it.owner_jid)
        for it in world.memory.values()
    }


def rows(world: World) -> dict[str, View]:
    """The instances in the database."""
    return {
        it.name: View(
            it.name,
            it.id,
            fingerprint(it.token),
            it.connection_status,
            it.integration,
            it.owner_jid,
            it.webhook is not None,
            it.setting is not None,
        )
        for it in world.rows.values()
    }
