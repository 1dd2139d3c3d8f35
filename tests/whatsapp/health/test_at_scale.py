"""Upkeep of very many integrations keeps its memory and lets the event loop go on."""

import asyncio

import pytest

from tests.harness.bench import scale
from tests.harness.bench.rig import rig

NUMBER, SERVERS = 30_000, 10


@pytest.mark.long
async def test_a_round_takes_no_memory_for_what_it_has_seen_and_holds_up_no_heartbeat() -> None:
    """The lists of three servers are all that it has at a time: 9000 of 30,000 instances."""
    async with rig() as one:
        database = await one.fresh()
        try:
            await scale.fill_integrations(database, NUMBER, SERVERS)
            told = await asyncio.wait_for(
                scale.upkeep_round(one, database, NUMBER, SERVERS, rounds=2), 600
            )
        finally:
            await database.connection.close()
    assert (told["integrations"], told["connected"]) == (NUMBER, NUMBER)
    assert told["aborted"] is None
    assert told["MB at most"] < scale.MOST_MEMORY / 2
    assert told["MB at most"] - told["MB before"] < 30
    # On a machine of its own it is below ``LONGEST_STILL``; a lease is lost after 2500.
    assert told["longest still ms"] < 5 * scale.LONGEST_STILL


@pytest.mark.long
@pytest.mark.parametrize("what", ["orphans", "reconcile"])
async def test_a_comparison_of_everything_keeps_nothing_of_what_agrees(what: str) -> None:
    async with rig() as one:
        database = await one.fresh()
        try:
            await scale.fill_integrations(database, NUMBER, SERVERS)
            told = await asyncio.wait_for(
                scale.upkeep_round(one, database, NUMBER, SERVERS, what=what), 600
            )
        finally:
            await database.connection.close()
    assert (told["drifts"], told["strangers"], told["aborted"]) == (0, 0, None)
    assert told["MB at most"] < scale.MOST_MEMORY / 2
    assert told["MB at most"] - told["MB before"] < 30
    assert told["longest still ms"] < 5 * scale.LONGEST_STILL
