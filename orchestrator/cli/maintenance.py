"""The verbs around a release: check-deploy, rebuild, and telling events again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli import connections, tables
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.show import moment

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings

_SAY_EVERY = 2.0


def check_deploy(_: argparse.Namespace, out: Output) -> int:
    """Hold the sagas under way against this release; 1 when it would strand any."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_check_deploy(settings, out))


def rebuild(arguments: argparse.Namespace, out: Output) -> int:
    """Compare the status rows with the log, and repair them."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_rebuild(settings, arguments.check, out))


def republish(arguments: argparse.Namespace, out: Output) -> int:
    """Tell events once more."""
    now = datetime.now(UTC)
    since = moment(arguments.since, now)
    until = moment(arguments.until, now, "--until") if arguments.until else None
    if until is not None and until <= since:
        raise CliError(WRONG, "--until must be later than --since")
    with connections.servers(out) as settings:
        return asyncio.run(_republish(settings, since, until, out))


async def _check_deploy(settings: Settings, out: Output) -> int:
    from evosaga.orchestrator.maintenance.deploy_check import check_deploy
    from evosaga.sagas import registry

    async with connections.postgres(settings) as pool:
        verdicts = await check_deploy(pool, registry.discover())
    fits = all(verdict.fits for verdict in verdicts)
    if out.json:
        out.data({"fits": fits, "sagas": [verdict.as_dict() for verdict in verdicts]})
    elif not verdicts:
        out.line("no saga is open: any release may take over")
    else:
        rows = [
            {
                "saga": f"{verdict.saga} v{verdict.version}",
                "open": ", ".join(f"{count} {status}" for status, count in verdict.open.items()),
                "verdict": verdict.said,
            }
            for verdict in verdicts
        ]
        tables.draw(rows, out, wrap=("verdict",))
    if not fits:
        out.problem(
            "this release would leave sagas behind: keep workers of the old one running beside it "
            "until they are over, or bring the definition back"
        )
    return DONE if fits else UNFINISHED


async def _rebuild(settings: Settings, check: bool, out: Output) -> int:
    from evosaga.orchestrator.maintenance.rebuild import rebuild
    from evosaga.sagas import registry

    known = registry.discover()
    async with connections.postgres(settings) as pool:
        total = await pool.fetchval("SELECT count(*) FROM evosaga.sagas")
        began = time.monotonic()
        with _progress("comparing" if check else "rebuilding", out) as progress:
            report = await rebuild(
                pool,
                known,
                check=check,
                progress=lambda sagas, _: progress(sagas, total),
            )
    seconds = time.monotonic() - began
    rate = round(report.events / seconds) if seconds else 0
    if out.json:
        told = asdict(report) | {"seconds": round(seconds, 3), "events_per_second": rate}
        for name in ("wrong", "alone"):
            told[name] = {str(saga_id): what for saga_id, what in told[name].items()}
        out.data(told)
        return UNFINISHED if report.left else DONE
    out.line(f"{report.sagas} sagas, {report.events} events in {seconds:.1f} s ({rate} events/s)")
    done = "" if check else f", {report.repaired} of them repaired"
    out.line(f"{report.different} rows differed from the log{done}")
    for saga_id, columns in list(report.wrong.items())[:20]:
        said = "was missing" if columns == ("*",) else f"differed in {', '.join(columns)}"
        out.line(f"  {saga_id} {said}")
    for saga_id, reason in list(report.alone.items())[:20]:
        out.problem(f"left alone: {saga_id}: {reason}")
    if report.without_history:
        out.note(f"{report.without_history} rows have no history any more (archived?): left alone")
    return UNFINISHED if report.left else DONE


async def _republish(
    settings: Settings, since: datetime, until: datetime | None, out: Output
) -> int:
    from evosaga.events.republish import republish_between, republish_from
    from evosaga.orchestrator.worker import worker_name
    from evosaga.sagas.whatsapp import integration_events

    async with (
        connections.postgres(settings) as pool,
        connections.own_redis(settings, pool) as redis,
    ):
        began = time.monotonic()
        with _progress("telling again", out) as progress:
            if until is None:
                count = await republish_from(
                    pool, redis, worker_name(), since, progress, integration_events.tell_again
                )
            else:
                count = await republish_between(
                    pool, redis, since, until, progress, integration_events.tell_again
                )
    seconds = time.monotonic() - began
    if out.json:
        out.data({"events": count, "seconds": round(seconds, 3)})
    else:
        out.line(f"told {count} events again on evosaga:events in {seconds:.1f} s")
    return DONE


@contextlib.contextmanager
def _progress(what: str, out: Output) -> Iterator[Callable[[int, int], None]]:
    """How far it is: a bar at a terminal, a line now and then in a pipe, nothing in JSON."""
    if out.json:
        yield lambda done, total: None
    elif out.terminal:
        from rich.progress import Progress

        with Progress(console=out.console, transient=True) as bar:
            task = bar.add_task(what)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        said_at = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal said_at
            if time.monotonic() - said_at > _SAY_EVERY:
                said_at = time.monotonic()
                out.note(f"{what}: {done} of {total}")

        yield say
