"""The health of all servers together, where workers share the servers among them."""

import json
from collections import Counter
from typing import Any, Final

from evosaga.orchestrator.whatsapp.health import store
from evosaga.orchestrator.whatsapp.health.server_check import HealthMonitor
from evosaga.orchestrator.whatsapp.integrations.rows import number_on, servers_named
from evosaga.orchestrator.whatsapp.reconciliation.inventory import NOT_CONFIGURED, unreachable

_COUNTED: Final = (
    *("integrations", "asked", "webhooks", "changed", "reconnects", "alerts", "seconds"),
)


async def of_servers(monitor: HealthMonitor, job: str) -> dict[str, Any]:
    """What the last check of each server found, summed up, in the form of one that checks all.

    Forgets what is remembered of integrations and of servers that are gone.
    """
    await store.forget(monitor.pool)
    servers = monitor.services.servers
    await monitor.pool.execute(_FORGET, job, [f"{job}/{name}" for name in servers])
    states: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    unseen: dict[str, str] = {}
    for row in await monitor.pool.fetch(_PARTS, [f"{job}/{name}" for name in servers]):
        name, told = row["name"].partition("/")[2], json.loads(row["result"] or "{}")
        states.update(told.get("states") or {})
        for what in _COUNTED:
            sums[what] += told.get(what) or 0
        if why := told.get("aborted") or told.get("failed"):
            unseen[name] = str(why)
            states["unknown"] += await number_on(monitor.pool, name)
    for name in await servers_named(monitor.pool):
        if name not in servers:
            unseen[name] = NOT_CONFIGURED
            states["unknown"] += await number_on(monitor.pool, name)
    blind = unseen.keys() >= servers.keys() and bool(unseen)
    return {
        **{what: sums[what] for what in _COUNTED},
        "integrations": sum(states.values()),
        "seconds": round(sums["seconds"], 3),
        "states": dict(+states),
        "aborted": unreachable(unseen) if blind else None,
        "not_looked_at": None if blind else unreachable(unseen),
    }


_PARTS: Final = """
SELECT name, last_result AS result FROM evosaga.chores WHERE name = ANY($1) ORDER BY name
"""
_FORGET: Final = """
DELETE FROM evosaga.chores WHERE starts_with(name, $1 || '/') AND name <> ALL($2)
  AND coalesce(last_run, next_at) < now() - interval '1 day' AND leader IS NULL
"""
