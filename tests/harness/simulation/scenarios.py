"""What runs begin with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from evosaga.events.commands import Command
from tests.harness.simulation.database import Integration
from tests.harness.simulation.scene import Scene
from tests.harness.simulation.workers import KEYS


@dataclass(frozen=True)
class Scenario:
    """What a run begins with: ``prepare`` publishes the commands."""

    name: str
    prepare: Callable[[Scene], None]
    deadline: float | None = None


def an_id(of: str) -> str:
    return str(uuid5(NAMESPACE_URL, of))


def create(name: str | None = None, organization: str = "org-a", id_: str = "create") -> Command:
    data = {
        "organization_id": an_id(organization),
        "clinic_id": an_id("clinic"),
        "name": "Clínica Sol",
        "channel": "EVOLUTION",
    }
    return Command(
        an_id(id_), "integration.create", data | ({"instance_name": name} if name else {})
    )


def delete(name: str, id_: str = "delete") -> Command:
    return Command(an_id(id_), "integration.delete", {"instance_name": name})


def _create(scene: Scene) -> None:
    scene.publish(create())


def _create_named(scene: Scene) -> None:
    scene.publish(create("sol"))


def _taken(scene: Scene) -> None:
    scene.strangers["sol"] = "a-strangers-token"
    scene.evolution.put("sol", "a-strangers-token")
    scene.publish(create("sol"))


def _delete(scene: Scene) -> None:
    founder = UUID(an_id("founder"))
    name = f"wa-{founder}"
    scene.founded[founder] = name
    scene.evolution.put(name, KEYS.instance_token(founder, KEYS.current))
    row = Integration(UUID(an_id("org-a")), name, "pending", KEYS.current)
    scene.database.integrations[founder] = row
    scene.publish(delete(name))


def _create_and_delete(scene: Scene) -> None:
    """The delete comes when the create is on its way: that one is cancelled, and waited for."""
    command = create()
    scene.publish(command)
    scene.publish(delete(f"wa-{command.saga_id}"), scene.workers[1])


SCENARIOS: Final = {
    one.name: one
    for one in (
        Scenario("create", _create),
        Scenario("create under a chosen name", _create_named),
        Scenario("create with a deadline", _create, deadline=8.0),
        Scenario("create where a stranger lives", _taken),
        Scenario("delete", _delete),
        Scenario("create and delete", _create_and_delete),
    )
}
