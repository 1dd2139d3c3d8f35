"""``evosaga integrations list`` and ``show``: found by what people know of a clinic."""

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from tests.support.commandline import Evosaga, commandline


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def test_integrations_are_listed_and_shown_in_the_terminal(
    evosaga: Evosaga, pool: Pool
) -> None:
    names = ("Odonto Vida", "Odonto Sol", "Clínica Mar")
    for number, name in enumerate(names):
        id_ = uuid.uuid4()
        await pool.execute(
            "INSERT INTO healthcare.integrations (id, organization_id, status, config, "
            "whatsapp_number) VALUES ($1, $1, 'disconnected', $2, $3)",
            id_,
            json.dumps({"instance_name": f"wa-{id_}", "name": name}),
            f"55119876543{number}1",
        )
    listed, plain, one, several, none, wrong = await asyncio.gather(
        evosaga("integrations", "list", "--search", "odo", "--sort", "name", "--json"),
        evosaga("integrations", "list", "--attention", "--limit", "2"),
        evosaga("integrations", "show", "(11) 98765-4321", "--json"),
        evosaga("integrations", "show", "odonto"),
        evosaga("integrations", "show", "nobody"),
        evosaga("integrations", "list", "--cursor", "nonsense"),
    )
    assert [row["name"] for row in listed.json["integrations"]] == ["Odonto Sol", "Odonto Vida"]
    assert (listed.json["count"], listed.json["more"]) == (2, False)
    assert plain.code == 0
    assert "3 integrations" in plain.out
    assert "--cursor" in plain.err
    assert one.json["name"] == "Clínica Mar"
    assert (several.code, none.code, wrong.code) == (2, 2, 2)
    assert "2 integrations are found by 'odonto'" in several.err
    assert "no integration is found by 'nobody'" in none.err
