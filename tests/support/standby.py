"""A standby of an embedded Postgres, made by ``pg_basebackup``, streaming, and its promotion."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg

from evosaga.orchestrator.local.binaries import find_postgres
from evosaga.orchestrator.local.handle import LocalServer, run
from evosaga.orchestrator.local.paths import Home, account_for_postgres
from evosaga.orchestrator.local.postgres import PORT, SOCKET, USER, plan
from evosaga.orchestrator.local.server_process import ServerSpec
from tests.support.waiting import eventually


@contextlib.contextmanager
def standby_of(primary: LocalServer) -> Iterator[LocalServer]:
    """It streams from the primary, and answers queries."""
    account = account_for_postgres()
    program = find_postgres(account)
    upstream = parse_qs(urlsplit(primary.url).query)["host"][0]

    def copied(home: Home) -> ServerSpec:
        words = [str(program.path.with_name("pg_basebackup")), "-D", f"{home.data}.fresh"]
        words += ["-h", upstream, "-p", str(PORT), "-U", USER]
        words += ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        return plan(home, program, account)._replace(prepare=[(words, "")])

    longest = len(f"run/{SOCKET}")
    with run("postgres", None, account, longest, copied) as server:
        yield server


@dataclass(frozen=True)
class Pair:
    """A primary and its standby."""

    primary: LocalServer
    standby: LocalServer

    @property
    def url(self) -> str:
        """One URL with both hosts."""
        parts = urlsplit(self.primary.url)
        hosts = [self._folder(one) for one in (self.primary, self.standby)]
        query = urlencode({"host": ",".join(hosts), "port": PORT})
        return f"postgresql://{USER}@{parts.path}?{query}"

    def _folder(self, server: LocalServer) -> str:
        return str(Path(parse_qs(urlsplit(server.url).query)["host"][0]))

    async def be_synchronous(self) -> None:
        """From now on a commit waits for the standby. The standby's own settings stay."""
        await self._ask(self.primary, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
        await self._ask(self.primary, "SELECT pg_reload_conf()")

        async def waits() -> bool:
            found = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
            return bool(await self._ask(self.primary, found))

        await eventually(waits, 20, message="the standby to be synchronous")

    async def caught_up(self) -> None:
        """The standby has what the primary has."""

        async def so() -> bool:
            found = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = sent_lsn"
            behind = "SELECT pg_current_wal_lsn() = sent_lsn FROM pg_stat_replication"
            return bool(await self._ask(self.primary, found)) and bool(
                await self._ask(self.primary, behind)
            )

        await eventually(so, 20, message="the standby to have everything")

    async def cut_off(self) -> None:
        """The standby hears nothing more: what is committed from now on is the primary's alone."""
        await self._ask(self.standby, "ALTER SYSTEM SET primary_conninfo = ''")
        await self._ask(self.standby, "SELECT pg_reload_conf()")

        async def gone() -> bool:
            return not await self._ask(self.primary, "SELECT count(*) FROM pg_stat_replication")

        await eventually(gone, 20, message="the standby to be cut off")

    async def fail_over(self) -> None:
        """The primary dies as in a crash, and the standby is promoted."""
        self.primary.kill()
        assert await self._ask(self.standby, "SELECT pg_promote()")

    async def _ask(self, server: LocalServer, query: str) -> object:
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()
