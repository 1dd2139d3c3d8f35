"""One of many applies webhooks, and another goes on when that one is gone."""

import asyncio

from evosaga.events.database import Pool
from evosaga.events.leader_election import Candidacy
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House


async def test_one_of_many_leads(pool: Pool) -> None:
    candidates = [Candidacy(pool, "a task", f"worker-{n}") for n in range(5)]
    leads = await asyncio.gather(*(candidate.held() for candidate in candidates))
    assert sorted(leads) == [False] * 4 + [True]
    other = Candidacy(pool, "another task", "worker-0")
    assert await other.held(), "each task has a leader of its own"


async def test_who_resigns_is_followed_at_once(pool: Pool) -> None:
    first, second = (Candidacy(pool, "a task", name) for name in ("first", "second"))
    assert await first.held()
    await second.resign()
    assert not await Candidacy(pool, "a task", "third").held(), "only a leader can resign"
    await first.resign()
    assert await second.held()
    assert not await first.held()


async def test_who_is_silent_is_followed_and_notices_when_it_wakes_up(pool: Pool) -> None:
    first = Candidacy(pool, "a task", "first", lease=0.2)
    second = Candidacy(pool, "a task", "second", lease=0.2)
    assert await first.held()
    assert not await second.held()
    await eventually(second.held)  # while the first one sleeps
    assert await eventually_not(first)


async def eventually_not(candidate: Candidacy) -> bool:
    async def lost() -> bool:
        return not await candidate.held()

    await eventually(lost)
    return True


async def test_while_it_leads_it_does_not_write(pool: Pool) -> None:
    leader = Candidacy(pool, "a task", "first", lease=60)
    assert await leader.held()
    before = await pool.fetchval("SELECT xmin::text FROM evosaga.leaders")
    for _ in range(50):
        assert await leader.held()
    assert await pool.fetchval("SELECT xmin::text FROM evosaga.leaders") == before


async def test_what_a_dead_leader_left_is_applied_by_the_next(house: House) -> None:
    """A worker dies in the middle of a look: its hints come due again."""
    name = await house.integration(channel="EVOLUTION")
    await house.deliver(name, data={"state": "open"})
    await house.becomes(name, "connected")
    await house.all_applied()
    await house.pool.execute(
        "UPDATE healthcare.integrations SET status = 'pending', updated_at = now()"
    )
    await house.pool.execute(
        "UPDATE evosaga.webhooks SET applied_at = NULL, due_at = now() + interval '1 second'"
    )
    await house.becomes(name, "connected")
    await house.all_applied()


async def test_a_hint_is_applied_when_its_look_is_over_and_not_before(house: House) -> None:
    """So a worker that dies in between loses nothing."""
    name = await house.integration(channel="EVOLUTION")
    hung = house.evolution.arm("slow", operation="connectionState", seconds=1)
    await house.deliver(name, data={"state": "open"})
    await eventually(lambda: hung.fired)
    (hint,) = await house.stored(name)
    assert hint["applied_at"] is None
    assert hint["due_at"] > hint["received_at"], "nobody else begins meanwhile"
    await house.becomes(name, "connected")
    await house.all_applied()
