"""Many workers share the servers of very many integrations, also while some of them die."""

import pytest

from tests.harness.bench import fleet

WORKERS, SERVERS, DIE = 30, 60, 10


@pytest.mark.long
async def test_each_server_is_checked_by_one_worker_at_a_time_whoever_dies(
    database_url: str,
) -> None:
    seen, _, _ = await fleet.run(database_url, WORKERS, SERVERS, 10.0, 10.0, kill=DIE)
    # On an overloaded machine a lease may run out under a check. Then another begins, and the
    # first one must know: that is what is promised (see ``Fleet.taken_over``).
    assert seen.twice == 0
    assert len(seen.leaders) >= 2
    checked = {server for _, server, _ in seen.rounds}
    assert len(checked) == SERVERS, "every server has its turn"
    after = [one for one in seen.rounds if one[2] not in {f"w{n}" for n in range(DIE)}]
    assert len({server for _, server, _ in after}) == SERVERS, "also without those that died"
    shares = seen.shares()
    assert max(shares.values()) < len(seen.rounds) / 2, "no worker has most of the work"
