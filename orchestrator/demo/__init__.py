"""``evosaga demo``: shows on real servers what the product promises, and checks it.

Every scene asserts what it says against Postgres, Valkey and the journal of the simulated
Evolution server, never against its own words. One claim that does not hold ends the demo.
"""

from __future__ import annotations

import asyncio
import time

from evosaga.orchestrator.cli import params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED


def run(*, out: params.Out) -> int:
    """Play all scenes; 0 when every claim held."""
    from evosaga.orchestrator.demo.assertions import NotSo
    from evosaga.orchestrator.demo.environment import Show
    from evosaga.orchestrator.demo.runner import play
    from evosaga.orchestrator.local.servers import local_servers

    began = time.monotonic()
    show = Show(out)
    show.title("evosaga: all of it, or none of it")
    show.say("Starting a real Postgres and a real Valkey, for this demo alone ...")
    try:
        with local_servers() as servers:
            claims = asyncio.run(play(show, servers))
    except NotSo as broken:
        out.problem(f"NOT SO: {broken}")
        return UNFINISHED
    show.end(
        f"{claims} claims, all of them checked and true, in {time.monotonic() - began:.0f} s. "
        "Nothing is left running."
    )
    show.say("Next: `evosaga dev` (in a checkout `make dev`) to play with it yourself.")
    return DONE
