"""Both embedded servers together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.postgres import local_postgres
from evosaga.orchestrator.local.valkey import local_valkey


class LocalServers(NamedTuple):
    """The two servers that everything runs on."""

    postgres: LocalServer
    valkey: LocalServer


@contextmanager
def local_servers(folder: Path | None = None) -> Iterator[LocalServers]:
    """`local_postgres` and `local_valkey`, started side by side. Raises LocalServerUnavailable."""
    from concurrent.futures import ThreadPoolExecutor  # here: it is half of what we import

    with ExitStack() as stack:
        with ThreadPoolExecutor(1) as beside:
            valkey = beside.submit(stack.enter_context, local_valkey(folder))
            postgres = stack.enter_context(local_postgres(folder))
        yield LocalServers(postgres, valkey.result())
