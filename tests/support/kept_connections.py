"""Connections to the suite's databases that outlive the pool which opened them.

A new one takes Postgres a fork and both sides the preparation of every statement, together half of
what a test with a worker costs. No code of ours sets session state (``events/database.py``), so the
next pool with the same options gets those of the pools before it, each reset in full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import asyncpg
import pytest

import evosaga.events.database
from evosaga.events import postgres_hosts
from evosaga.events.database import behind_pooler

_MOST: Final = 8
"""Connections that are kept of one kind; a pool has as many."""
_Kind: TypeAlias = tuple[str, str]
"""What a connection was opened with."""
_connect = postgres_hosts._connect


@dataclass
class KeptConnections:
    """Those of one test process, by what they were opened with."""

    databases: set[str] = field(default_factory=set)
    """The URLs of those that they are kept for, without escapes: settings write some."""
    idle: defaultdict[_Kind, list[_Kept]] = field(default_factory=lambda: defaultdict(list))

    def serves(self, url: str) -> None:
        """Keep those to this database from now on."""
        self.databases.add(unquote(url))

    @contextmanager
    def in_pools(self) -> Iterator[None]:
        """Pools take theirs from here. No pooler is in front, so none has to be found out."""

        async def pooled(url: str) -> bool:
            return unquote(url) not in self.databases and await behind_pooler(url)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(postgres_hosts, "_connect", self._connect)
            patch.setattr(evosaga.events.database, "behind_pooler", pooled)
            yield

    async def _connect(
        self, url: str, timeout: float, options: Mapping[str, Any]
    ) -> asyncpg.Connection[asyncpg.Record]:
        database = unquote(url)
        if database not in self.databases or "connection_class" not in options:  # not a pool's
            return await _connect(url, timeout, options)
        own = {name: value for name, value in options.items() if not name.endswith("_class")}
        kind = database, repr(sorted(own.items()))  # with the event loop
        while self.idle[kind]:
            kept = self.idle[kind].pop()
            try:
                await kept.reset(timeout=5)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                kept.end()  # a test ended it
            else:
                return kept
        made = await _connect(url, timeout, {**options, "connection_class": _Kept})
        assert isinstance(made, _Kept)
        made.shelf, made.kind = self, kind
        return made

    def pids(self, url: str) -> list[int]:
        """The backends of those to this database."""
        return [one.get_server_pid() for one in self._of(url)]

    def end(self, url: str) -> None:
        """End those to this database."""
        for one in self._of(url):
            one.end()
        self.databases.discard(unquote(url))
        for kind in [kind for kind in self.idle if kind[0] == unquote(url)]:
            del self.idle[kind]

    def _of(self, url: str) -> list[_Kept]:
        kept = [one for kind, idle in self.idle.items() if kind[0] == unquote(url) for one in idle]
        return [one for one in kept if not one.is_closed()]


class _Kept(asyncpg.Connection):
    """One that goes back to the shelf when its pool is closed and nothing uses it."""

    shelf: KeptConnections
    kind: _Kind

    async def close(self, *, timeout: float | None = None) -> None:
        if not self._keep():
            await super().close(timeout=timeout)

    def terminate(self) -> None:
        if not self._keep():
            super().terminate()

    def end(self) -> None:
        super().terminate()

    def _keep(self) -> bool:
        reference: Any = getattr(self, "_pool_holder")  # noqa: B009  # which its stubs do not know
        holder = reference and reference()
        if holder is None or holder._in_use is not None or self.is_closed():
            return False
        if not (holder._pool._closed or holder._pool.is_closing()):
            return False  # its pool goes on, and wants to be rid of it
        shelf, idle = self.shelf, self.shelf.idle[self.kind]
        if self.is_in_transaction() or len(idle) >= _MOST or self.kind[0] not in shelf.databases:
            return False
        self._pool_holder = None
        holder._release_on_close()
        idle.append(self)
        return True
