"""E4, E6: Postgres fails over to a standby under live workers."""

from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

import evosaga.events.postgres_hosts
from evosaga.events.database import Pool, open_pool
from evosaga.events.postgres_hosts import NoWritableHost, connect, host_of
from evosaga.events.postgres_url import understood
from evosaga.orchestrator.cli import doctor_replication
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.postgres import SETTINGS
from tests.harness.chaos.proxy import Hang, Proxy, upstream_of
from tests.harness.chaos.standby import fail_over
from tests.support.commandline import commandline
from tests.support.databases import NEEDLESS, brief_postgres
from tests.support.sampled import sampled

KINDS = {True: "synchronous", False: "asynchronous"}


@pytest.mark.parametrize("synchronous", sampled(KINDS, keep=[False], id=KINDS.__getitem__))
async def test_after_a_promotion_nothing_acknowledged_is_lost_or_is_found_again(
    synchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in NEEDLESS:
        monkeypatch.setitem(SETTINGS, setting, "off")

    async def look(pool: Pool) -> None:
        """What ``doctor`` says of the standby; a limit of less than nothing is exceeded."""
        for limit in (2.0**40, -1.0):
            monkeypatch.setattr(doctor_replication, "_BEHIND_BYTES", limit)
            (found,) = [one async for one in doctor_replication.check_standbys(pool)]
            how = "synchronously" if synchronous else "asynchronously"
            assert f"replicates {how}, " in found.said
            assert found.verdict == ("ok" if synchronous and limit > 0 else "warn")
            assert ("look at its disk" in found.cure) is (limit < 0)
            assert ("synchronous_standby_names" in found.cure) is not synchronous

    run = await fail_over(
        8, synchronous=synchronous, folder=tmp_path, seconds=0.5, workers=1, look=look
    )
    assert bool(run.forgotten) is not synchronous


async def test_of_several_hosts_the_one_that_answers_and_takes_writes_is_used(
    own_postgres: LocalServer, tmp_path: Path, settings: Settings
) -> None:
    """A host that is down, and one that stops to take writes."""
    nobody = str(tmp_path)
    folder = parse_qs(urlsplit(own_postgres.url).query)["host"][0]
    query = urlencode({"host": f"{nobody},{folder}", "port": "5432"})
    url = understood(f"postgresql://postgres@/evosaga?{query}")
    connection = await connect(url, timeout=5)
    assert host_of(url) == f"{folder}:5432"
    await connection.close()
    (told,) = [one async for one in doctor_replication.check_hosts(url)]
    assert told.said == f"on {folder}:5432, which takes writes; {nobody}:5432 is no such socket"
    assert (told.verdict, nobody in told.cure) == ("warn", True)
    pool = await open_pool(url)
    held = await pool.acquire()
    # What becomes read-only under us is not kept.
    await held.execute("ALTER DATABASE evosaga SET default_transaction_read_only = on")
    await held.execute("SET default_transaction_read_only = on")
    await pool.release(held)
    assert pool.get_size() == 0
    with pytest.raises(NoWritableHost, match="takes writes"):
        await connect(url, timeout=5)
    ran = await commandline(tmp_path, settings.model_copy(update={"database_url": url}))(
        "doctor", "--json"
    )
    assert ran.code == 3
    said = next(one for one in ran.json["checks"] if one["check"] == "postgres")["said"]
    assert f"none of {nobody}:5432, {folder}:5432 takes writes: promote one" in said
    pool.terminate()


async def test_two_names_of_one_server_are_no_two_primaries(own_postgres: LocalServer) -> None:
    with brief_postgres() as another:
        async with (
            Proxy(upstream_of(own_postgres.url)) as one,
            Proxy(upstream_of(own_postgres.url)) as twin,
            Proxy(upstream_of(another.url)) as other,
        ):
            for second, verdict, how in (
                (twin, "ok", "the same server"),
                (other, "bad", "primary"),
            ):
                where = f"127.0.0.1:{one.port},127.0.0.1:{second.port}"
                url = understood(f"postgresql://postgres@{where}/evosaga")
                await (await connect(url, timeout=5)).close()
                (told,) = [found async for found in doctor_replication.check_hosts(url)]
                assert told.verdict == verdict, told
                assert f"127.0.0.1:{second.port} is {how}" in told.said
                assert ("two primaries" in told.said) is (second is other)


async def test_a_host_that_hangs_costs_seconds_and_not_the_connection(
    own_postgres: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.events.postgres_hosts, "_EACH", 0.3)
    async with (
        Proxy(upstream_of(own_postgres.url)) as one,
        Proxy(upstream_of(own_postgres.url)) as other,
    ):
        await one.arm(Hang())
        where = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
        url = understood(f"postgresql://postgres@{where}/evosaga")
        connection = await connect(url, timeout=5)
        assert host_of(url) == f"127.0.0.1:{other.port}"
        await connection.close()
