"""Ids that come with an organization's key are that organization's: nobody else meets them."""

import uuid
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.commands import Command, saga_id_of
from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.client import Client, Conflict
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from tests.api.conftest import CREATE, OUR_KEY, OURS, THEIR_KEY, THEIRS, asked, problem
from tests.support.driving import (
    count,
    create,
    dead_letters,
    delete,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually

UUID_ID = "0197c0de-1111-7222-8333-444455556666"
IDS = ["order-17", UUID_ID, UUID_ID.upper(), "wa-clinic", f"{UUID_ID}:0"]


def given(id_: str, type_: str = "integration.create", **data: Any) -> dict[str, Any]:
    """What is posted to ``/commands``."""
    return {"id": id_, "type": type_, "data": data}


def key(id_: str) -> dict[str, str]:
    return {"Idempotency-Key": id_}


async def saga_of(answer: httpx.Response) -> str:
    assert answer.status_code in (201, 202), answer.text
    return str(answer.json()["saga_id"])


async def test_the_same_id_of_two_organizations_is_two_commands(
    ours: httpx.AsyncClient,
    theirs: httpx.AsyncClient,
    operator: httpx.AsyncClient,
    subtests: pytest.Subtests,
) -> None:
    """Nobody sees, blocks or pre-empts the other, by whichever route the id comes."""
    # The same UUID in capitals is the same saga, so it gets a test of its own.
    for id_ in (*IDS[:2], *IDS[3:]):
        with subtests.test(id_=id_):
            await is_two_commands(id_, ours, theirs, operator)
            for client in (ours, theirs):
                name = (await client.get(f"/sagas/{id_}")).json()["instance_name"]
                await client.delete(f"/integrations/evolution/{name}")


async def test_a_uuid_in_capitals_of_two_organizations_is_two_commands(
    ours: httpx.AsyncClient, theirs: httpx.AsyncClient, operator: httpx.AsyncClient
) -> None:
    await is_two_commands(UUID_ID.upper(), ours, theirs, operator)


async def is_two_commands(
    id_: str, ours: httpx.AsyncClient, theirs: httpx.AsyncClient, operator: httpx.AsyncClient
) -> None:
    body, their_body = asked(), asked(organization_id=str(THEIRS), name="Theirs")
    before = await theirs.post("/commands", json=given(id_, **their_body))
    made = await ours.post(CREATE, json=body, headers=key(id_))
    their_saga, our_saga = await saga_of(before), await saga_of(made)
    assert len({their_saga, our_saga, id_.lower()}) == 3
    assert made.status_code == 201
    # A repetition is known by every route, and to its own organization alone.
    for again in (
        await ours.post(CREATE, json=body, headers=key(id_)),
        await ours.post("/commands", json=given(id_, **body)),
    ):
        assert await saga_of(again) == our_saga
    other = await ours.post(CREATE, json=body | {"name": "Other"}, headers=key(id_))
    assert problem(other)["code"] == "conflicting_duplicate"
    # Each finds its own by the id.
    for client, saga in ((ours, our_saga), (theirs, their_saga)):
        for path in ("", "/events", "/why", "/replay-plan"):
            assert (await client.get(f"/sagas/{id_}{path}")).status_code == 200
        assert (await client.get(f"/sagas/{id_}")).json()["saga_id"] == saga
    assert (await ours.get(f"/sagas/{their_saga}")).status_code == 404
    # The operator finds the newest by the id, and each by its own.
    for reference, saga in ((id_, our_saga), (our_saga, our_saga), (their_saga, their_saga)):
        assert (await operator.get(f"/sagas/{reference}")).json()["saga_id"] == saga


async def test_an_id_that_is_another_ones_saga_id_shows_and_blocks_nothing(
    ours: httpx.AsyncClient, theirs: httpx.AsyncClient
) -> None:
    saga = await saga_of(await ours.post(CREATE, json=asked()))
    taken = await theirs.post(CREATE, json=asked(organization_id=str(THEIRS)), headers=key(saga))
    assert taken.status_code == 201
    assert await saga_of(taken) != saga
    assert (await ours.get(f"/sagas/{saga}")).json()["organization_id"] == str(OURS)
    told = (await theirs.get(f"/sagas/{saga}")).json()
    assert told["organization_id"] == str(THEIRS)


async def test_an_id_that_is_another_ones_instance_hides_it_from_nobody(
    ours: httpx.AsyncClient, theirs: httpx.AsyncClient, operator: httpx.AsyncClient
) -> None:
    made = (await ours.post(CREATE, json=asked(instance_name="clinic-sol"))).json()
    taken = await theirs.post(
        CREATE, json=asked(organization_id=str(THEIRS)), headers=key("clinic-sol")
    )
    assert taken.status_code == 201
    # Nor does one that is refused for having asked for the name.
    refused = await theirs.post(
        "/commands", json=given("x", "integration.delete", instance_name="clinic-sol")
    )
    assert refused.status_code == 202
    for client in (ours, operator):
        for path in ("", "/events", "/why"):
            assert (await client.get(f"/sagas/clinic-sol{path}")).status_code == 200
        assert (await client.get("/sagas/clinic-sol")).json()["saga_id"] == made["saga_id"]
    cancelled = await ours.post("/sagas/clinic-sol/cancel")
    assert problem(cancelled)["code"] == "not_cancellable", "it is ours, and completed"


async def test_nobody_takes_the_name_that_a_saga_of_another_one_will_give(
    ours: httpx.AsyncClient, theirs: httpx.AsyncClient
) -> None:
    """Whoever guesses an id could work out the saga's, and so the instance's name."""
    coming = f"wa-{saga_id_of('order-17', OURS)}"
    squatter = asked(organization_id=str(THEIRS), instance_name=coming)
    for answer in (
        await theirs.post(CREATE, json=squatter),
        await theirs.post("/commands", json=given("x", **squatter)),
    ):
        assert (answer.status_code, problem(answer)["code"]) == (422, "invalid_data")
    made = await ours.post(CREATE, json=asked(), headers=key("order-17"))
    assert (made.status_code, made.json()["instance_name"]) == (201, coming)
    # What was one's own may be so again.
    assert (await ours.delete(f"/integrations/evolution/{coming}")).status_code == 200
    again = await ours.post(CREATE, json=asked(instance_name=coming))
    assert (again.status_code, again.json()["instance_name"]) == (201, coming)


async def test_cancels_and_replays_of_two_organizations_may_have_the_same_id(
    ours: httpx.AsyncClient, theirs: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("licence", operation="create", times=None)
    sagas = [
        await saga_of(
            await client.post("/commands", json=given("it", **asked(organization_id=str(who))))
        )
        for client, who in ((ours, OURS), (theirs, THEIRS))
    ]
    for client, saga in zip((ours, theirs), sagas, strict=True):
        for _ in range(2):
            by_route = await client.post(f"/sagas/{saga}/cancel", headers=key("stop"))
            assert await saga_of(by_route) == saga
        by_command = await client.post("/commands", json=given("stop", "saga.cancel", saga_id=saga))
        assert await saga_of(by_command) == saga


@pytest.mark.parametrize("door", ["http", "operator", "stream"])
async def test_nobody_takes_the_id_of_a_follow_up(
    door: str,
    parts: AppContext,
    ours: httpx.AsyncClient,
    theirs: httpx.AsyncClient,
    operator: httpx.AsyncClient,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    """A delete that waits for a create has it cancelled, under the id ``<its saga>:0``."""
    evolution.arm("licence", operation="create", times=None)
    making = await saga_of(await ours.post("/commands", json=given("make", **asked())))
    chosen = str(uuid.uuid4())
    taken = f"{chosen}:0"
    squatter = given(taken, **asked(organization_id=str(THEIRS)))
    if door == "stream":
        await publish(redis, squatter)
        await outcome_begun(pool, taken)
    else:
        client = operator if door == "operator" else theirs
        assert (await client.post("/commands", json=squatter)).status_code == 202
    view = await find_saga(pool, making)
    assert view is not None
    # From the stream, since there the delete's saga has the id that it was given.
    await publish(redis, delete(str(view.instance_name)) | {"id": chosen})
    assert (await outcome(pool, making)).status == "compensated"
    evolution.disarm()
    assert (await outcome(pool, chosen)).status == "completed"
    await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []


async def outcome_begun(pool: Pool, reference: str) -> None:
    async def there() -> bool:
        return await find_saga(pool, reference) is not None

    await eventually(there)


async def test_a_wish_under_the_id_of_a_follow_up_keeps_it_from_nothing(
    parts: AppContext, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Not even one of the stream, about the very saga."""
    evolution.arm("licence", operation="create", times=None)
    making, chosen = create(), str(uuid.uuid4())
    await publish(redis, making)
    await outcome_begun(pool, making["id"])
    wish = given(f"{chosen}:0", "saga.replay", saga_id=making["id"])
    cancel = given(f"{chosen}:0", "saga.cancel", saga_id=making["id"], reason="theirs")
    await publish(redis, wish)  # can't be, and is a dead letter
    await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
    # In one batch the delete is accepted before anything is cancelled.
    behind = delete(f"wa-{making['id']}") | {"id": chosen}
    await streams.publish_commands(redis, [cancel, behind])
    assert (await outcome(pool, chosen)).status == "completed"
    await eventually(lambda: nothing_pending(redis))
    assert [letter["code"] for letter in await dead_letters(redis)] == ["not_replayable"]


async def test_what_an_older_release_has_stored_keeps_its_id(
    parts: AppContext, ours: httpx.AsyncClient, theirs: httpx.AsyncClient, pool: Pool
) -> None:
    """It counted all ids together, as the stream does; what an organization has so is its own."""
    body = asked()
    stored = await parts.gate.submit(Command("order-17", "integration.create", body))
    await outcome(pool, str(stored.saga_id))
    again = await ours.post(CREATE, json=body, headers=key("order-17"))
    assert await saga_of(again) == str(stored.saga_id) == str(saga_id_of("order-17"))
    other = await ours.post("/commands", json=given("order-17", **body | {"name": "Other"}))
    assert problem(other)["code"] == "conflicting_duplicate"
    assert (await ours.get("/sagas/order-17")).json()["saga_id"] == str(stored.saga_id)
    fresh = await theirs.post(
        CREATE, json=asked(organization_id=str(THEIRS)), headers=key("order-17")
    )
    assert await saga_of(fresh) != str(stored.saga_id)


async def test_an_operators_ids_and_the_streams_are_as_they_were(
    operator: httpx.AsyncClient, pool: Pool, redis: Redis
) -> None:
    body = asked()
    made = await operator.post(CREATE, json=body, headers=key("order-17"))
    assert await saga_of(made) == str(saga_id_of("order-17"))
    await publish(redis, given("order-17", **body))
    await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []
    assert await count(pool, "SELECT count(*) FROM evosaga.sagas") == 1
    literal = await operator.post("/commands", json=given(UUID_ID.upper(), **asked()))
    assert await saga_of(literal) == UUID_ID


async def test_every_answer_names_the_saga(ours: httpx.AsyncClient) -> None:
    made = await ours.post(CREATE, json=asked(), headers=key("one"))
    duplicate = await ours.post(CREATE, json=asked(), headers=key("two"))
    name = made.json()["instance_name"]
    gone = await ours.delete(f"/integrations/evolution/{name}", headers=key("three"))
    later = await ours.post("/commands", json=given("four", **asked()))
    assert [a.status_code for a in (made, duplicate, gone, later)] == [201, 409, 200, 202]
    for id_, answer in (("two", duplicate), ("three", gone), ("four", later)):
        view = (await ours.get(f"/sagas/{id_}")).json()
        assert answer.headers["Location"] == f"/sagas/{view['saga_id']}"
        assert view["command_id"] == id_


async def test_the_python_client_asks_again_without_doing_it_twice(address_: str) -> None:
    async with Client(address_, OUR_KEY) as our_client, Client(address_, THEIR_KEY) as their_client:
        clinic = uuid.uuid4()
        made = [
            await client.create(who, clinic, "Sol", channel="EVOLUTION", id="one")
            for client, who in ((our_client, OURS), (their_client, THEIRS), (our_client, OURS))
        ]
        assert made[0].saga_id == made[2].saga_id != made[1].saga_id
        assert (await our_client.status("one")).saga_id == made[0].saga_id
        assert (await their_client.status("one")).saga_id == made[1].saga_id
        with pytest.raises(Conflict):
            await our_client.create(OURS, clinic, "Luna", channel="EVOLUTION", id="one")


def test_an_id_is_another_saga_in_every_namespace() -> None:
    for id_ in IDS:
        among = [
            saga_id_of(id_),
            saga_id_of(id_, OURS),
            saga_id_of(id_, THEIRS),
            Command(id_, "x", {}, follow_up=True).saga_id,
        ]
        assert len(set(among)) == len(among)
    assert saga_id_of(UUID_ID, OURS) == saga_id_of(UUID_ID.upper(), OURS)
    # A follow-up's saga can't even be named: as a command's id its UUID is a text like others.
    reserved = Command("x:0", "x", {}, follow_up=True).saga_id
    assert (reserved.version, saga_id_of(str(reserved)) == reserved) == (8, False)
