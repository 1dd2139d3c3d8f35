"""Steps on ``healthcare.integrations``: what others changed meanwhile is not overwritten."""

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest

from evosaga.events.database import Pool
from evosaga.sagas.definition import BatchEffect
from evosaga.sagas.outcome import Done, Outcome, Rejected, Sighting
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION, CreateIntegration
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION, DeleteIntegration
from evosaga.sagas.whatsapp.services import Context, Services
from evosaga.sagas.whatsapp.steps import integration_row, routing_key

NAME = "the-name"
ORGANIZATION, CLINIC, MAKER = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()


@pytest.fixture
def looking(services: Services, pool: Pool) -> Services:
    """A world with eyes for Postgres."""
    return replace(services, pool=pool)


def creating(services: Services) -> Context:
    data = {"organization_id": ORGANIZATION, "clinic_id": CLINIC, "name": "Clínica Sol"}
    facts = {"instance_name": NAME, "created_by": str(MAKER), "key_id": services.keys.current}
    return Context(MAKER, CreateIntegration.model_validate(data), services, facts=facts)


def deleting(services: Services, **more: Any) -> Context:
    facts = {
        "instance_name": NAME,
        "integration_id": str(MAKER),
        "created_by": str(MAKER),
        "status": "connected",
        "clinic_id": str(CLINIC),
        "organization_id": str(ORGANIZATION),
        "key_id": services.keys.current,
    }
    data = DeleteIntegration(instance_name=NAME)
    return Context(uuid.uuid4(), data, services, facts=facts | more)


async def run(pool: Pool, effect: BatchEffect, *contexts: Context) -> list[Outcome]:
    async with pool.acquire() as connection, connection.transaction():
        return list(await effect(connection, contexts))


async def row(pool: Pool) -> dict[str, Any] | None:
    found = await pool.fetchrow("SELECT * FROM healthcare.integrations")
    return dict(found) | {"config": json.loads(found["config"])} if found else None


async def repointed(pool: Pool) -> None:
    """Somebody else lets the row name another instance."""
    await pool.execute(
        'UPDATE healthcare.integrations SET config = config || \'{"instance_name": "theirs"}\''
    )


async def begun(pool: Pool, status: str) -> uuid.UUID:
    """The row of another saga."""
    saga_id = uuid.uuid4()
    await pool.execute(
        "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, "
        "command_hash, correlation_id, next_sequence) "
        "VALUES ($1, 'create-integration', 1, $2, $3, $3, '', '', 1)",
        saga_id,
        status,
        str(saga_id),
    )
    return saga_id


# --- effects ----------------------------------------------------------------------------------


@pytest.mark.fault("e7")
async def test_a_second_row_of_an_organization_is_refused_for_good(
    pool: Pool, services: Services
) -> None:
    await pool.execute("SELECT healthcare.save_evolution_integration($1, 'by-hand')", ORGANIZATION)
    [said] = await run(pool, integration_row.save_integrations, creating(services))
    assert isinstance(said, Rejected)
    assert said.code == "integration_exists"


@pytest.mark.fault("e8")
async def test_a_row_that_names_another_instance_by_now_is_not_marked(
    pool: Pool, services: Services
) -> None:
    await run(pool, integration_row.save_integrations, creating(services))
    await repointed(pool)
    before = await row(pool)
    [said] = await run(pool, integration_row.mark_deleting, deleting(services))
    assert isinstance(said, Rejected)
    assert said.code == "not_found"
    assert await row(pool) == before


@pytest.mark.fault("e8")
@pytest.mark.parametrize(
    "effect", [integration_row.delete_integrations, integration_row.unsave_integrations]
)
async def test_a_row_that_names_another_instance_by_now_is_not_deleted(
    pool: Pool, services: Services, effect: BatchEffect
) -> None:
    await run(pool, integration_row.save_integrations, creating(services))
    await repointed(pool)
    before = await row(pool)
    undo = effect is integration_row.unsave_integrations
    [said] = await run(pool, effect, creating(services) if undo else deleting(services))
    assert said == Done({"deleted": False})
    assert await row(pool) == before


@pytest.mark.fault("e8")
async def test_what_others_changed_in_the_row_is_still_the_sagas_to_delete(
    pool: Pool, services: Services
) -> None:
    await run(pool, integration_row.save_integrations, creating(services))
    await pool.execute("UPDATE healthcare.integrations SET whatsapp_number = '5511'")
    assert await run(pool, integration_row.delete_integrations, deleting(services)) == [
        Done({"deleted": True})
    ]
    assert await run(pool, integration_row.delete_integrations, deleting(services)) == [
        Done({"deleted": False})
    ]


async def test_a_delete_that_is_called_off_gives_the_row_back_as_it_found_it(
    pool: Pool, services: Services
) -> None:
    """Not as admission saw it: a delete that waited saw another saga's mark."""
    await run(pool, integration_row.save_integrations, creating(services))
    await pool.execute("UPDATE healthcare.integrations SET status = 'disconnected'")
    ctx = deleting(services, status="deleting")
    [said] = await run(pool, integration_row.mark_deleting, ctx)
    assert said == Done({"status": "disconnected"})
    assert ((await row(pool)) or {})["status"] == "deleting"
    assert isinstance(said, Done)
    await run(pool, integration_row.unmark_deleting, replace(ctx, results={"mark": said.result}))
    assert ((await row(pool)) or {})["status"] == "disconnected"


@pytest.mark.fault("e8")
async def test_a_mark_that_others_have_wiped_is_not_restored(
    pool: Pool, services: Services
) -> None:
    await run(pool, integration_row.save_integrations, creating(services))
    await run(pool, integration_row.mark_deleting, deleting(services))
    await pool.execute("UPDATE healthcare.integrations SET status = 'connected'")
    await run(pool, integration_row.unmark_deleting, deleting(services, status="pending"))
    assert ((await row(pool)) or {})["status"] == "connected"


# --- probes -----------------------------------------------------------------------------------


async def sight(saga: Any, step: str, ctx: Context) -> Sighting:
    probe = saga.step(step).probe
    assert probe is not None
    found = await probe(ctx)
    assert found.evidence
    assert ctx.services.keys.webhook_token(MAKER, ctx.services.keys.current) not in found.evidence
    return Sighting(found.sighting)


async def test_the_row_of_a_create_is_there_absent_or_somebody_elses(
    pool: Pool, looking: Services
) -> None:
    ctx = creating(looking)
    assert await sight(CREATE_INTEGRATION, "postgres", ctx) is Sighting.ABSENT
    await run(pool, integration_row.save_integrations, ctx)
    assert await sight(CREATE_INTEGRATION, "postgres", ctx) is Sighting.THERE
    await repointed(pool)
    assert await sight(CREATE_INTEGRATION, "postgres", ctx) is Sighting.FOREIGN
    await pool.execute("DELETE FROM healthcare.integrations")
    await pool.execute("SELECT healthcare.save_evolution_integration($1, 'by-hand')", ORGANIZATION)
    assert await sight(CREATE_INTEGRATION, "postgres", ctx) is Sighting.FOREIGN
    await pool.execute("UPDATE healthcare.integrations SET enabled = false")
    assert await sight(CREATE_INTEGRATION, "postgres", ctx) is Sighting.ABSENT


async def test_the_mark_and_the_removal_of_a_row_can_be_seen(pool: Pool, looking: Services) -> None:
    ctx = deleting(looking)

    async def seen() -> tuple[Sighting, Sighting]:
        mark = await sight(DELETE_INTEGRATION, "mark", ctx)
        return mark, await sight(DELETE_INTEGRATION, "postgres", ctx)

    await run(pool, integration_row.save_integrations, creating(looking))
    assert await seen() == (Sighting.ABSENT, Sighting.ABSENT)
    await run(pool, integration_row.mark_deleting, ctx)
    assert await seen() == (Sighting.THERE, Sighting.ABSENT)
    await repointed(pool)
    assert await seen() == (Sighting.FOREIGN, Sighting.FOREIGN)
    await pool.execute("DELETE FROM healthcare.integrations")
    assert await seen() == (Sighting.THERE, Sighting.THERE)


async def test_without_a_connection_nothing_is_concluded(services: Services) -> None:
    assert await sight(CREATE_INTEGRATION, "postgres", creating(services)) is Sighting.UNKNOWN
    for step in ("mark", "postgres"):
        assert await sight(DELETE_INTEGRATION, step, deleting(services)) is Sighting.UNKNOWN


async def test_the_routing_key_is_looked_for(looking: Services) -> None:
    create, delete = creating(looking), deleting(looking)

    async def seen() -> tuple[Sighting, Sighting]:
        made = await sight(CREATE_INTEGRATION, "cache", create)
        return made, await sight(DELETE_INTEGRATION, "cache", delete)

    assert await seen() == (Sighting.ABSENT, Sighting.THERE)
    await routing_key.fill(create)
    assert await seen() == (Sighting.THERE, Sighting.ABSENT)
    await looking.redis.delete(routing_key.filled_key(NAME))
    await looking.redis.set(routing_key.key(NAME), "somebody else's")
    assert await seen() == (Sighting.ABSENT, Sighting.ABSENT)
    await routing_key.invalidate(delete)
    assert await seen() == (Sighting.ABSENT, Sighting.THERE)


def test_every_step_that_leaves_something_behind_can_be_looked_at() -> None:
    blind = {
        f"{saga.name} {step.name}"
        for saga in (CREATE_INTEGRATION, DELETE_INTEGRATION)
        for step in saga.steps
        if step.probe is None
    }
    assert blind == {
        "create-integration notify",
        "create-integration pair",
        "delete-integration notify",
    }
