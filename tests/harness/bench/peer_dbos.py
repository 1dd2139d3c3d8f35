"""The same four steps on DBOS Transact, for ``make bench ARGS="--peer dbos"``.

A workflow a create, a step an outside system, its system tables in the same Postgres.
"""

import json

from dbos import DBOS

from tests.harness.bench import peer

THREADS = 24
"""DBOS writes from threads. As shipped they are four more than cores, and with these it was a fifth
faster on two cores; 64 are no faster, nor is uvloop. Synchronous workflows in 24 threads of ours
were a tenth faster still, but need other clients for the same effects."""

evolution = DBOS.step()(peer.evolution)
postgres = DBOS.step()(peer.postgres)
cache = DBOS.step()(peer.cache)
notify = DBOS.step()(peer.notify)


@DBOS.workflow()
async def create(saga_id: str, data: dict[str, str]) -> None:
    """One create. It returns when DBOS has recorded that it did."""
    config = json.dumps(data)
    await evolution(saga_id)
    await postgres(saga_id, config)
    await cache(saga_id, config)
    await notify(saga_id)


async def main(database: str, redis_url: str, stub: str) -> None:
    """Launch DBOS, and work."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": database,
            "log_level": "ERROR",
            "max_executor_threads": THREADS,
            "sys_db_pool_size": THREADS,
        }
    )
    DBOS.launch()
    await peer.work(lambda command: create(command["id"], command["data"]))


if __name__ == "__main__":
    peer.run(main)
