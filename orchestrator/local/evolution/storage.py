"""The simulated server's database in a file, so that it survives a restart of ``evosaga dev``."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from evosaga.orchestrator.local.evolution.instances import Row
from evosaga.orchestrator.local.evolution.server import SimulatedEvolution

_EVERY: Final = 1.0
_FIELDS: Final = {field.name for field in fields(Row)}


@contextlib.asynccontextmanager
async def kept(server: SimulatedEvolution, file: Path) -> AsyncIterator[None]:
    """Load what the file has into a server that runs; write back what it has, each second."""
    server.load(read(file))
    last: list[dict[str, Any]] = []

    def write() -> None:
        nonlocal last
        rows = [asdict(row) for row in server.dump().values()]
        if rows != last:
            _replace(file, rows)
            last = rows

    async def write_now_and_then() -> None:
        while True:
            await asyncio.sleep(_EVERY)
            write()

    writing = asyncio.create_task(write_now_and_then())
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        write()


def read(file: Path) -> Mapping[str, Row]:
    """The instances by name; none where the file is missing or holds something else."""
    try:
        told = [
            Row(**{name: value for name, value in row.items() if name in _FIELDS})
            for row in json.loads(file.read_text())
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {row.name: row for row in told}


def _replace(file: Path, rows: list[dict[str, Any]]) -> None:
    """As a whole; the tokens in it are for its owner alone."""
    temporary = file.with_suffix(".new")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(number, "w") as stream:
        json.dump(rows, stream)
    os.replace(temporary, file)
