"""The verbs ``check-deploy`` and ``rebuild``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED
from evosaga.orchestrator.cli.output import Output

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings


def check_deploy(*, out: params.Out) -> int:
    """Check the sagas under way against this release; 1 when it would strand any."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_check_deploy(settings, out))


def rebuild(
    *,
    check: bool = False,
    out: params.Out,
) -> int:
    """Compare the status rows with the log, and repair them.

    Args:
        check: only compare, write nothing
    """
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_rebuild(settings, check, out))


async def _check_deploy(settings: Settings, out: Output) -> int:
    from evosaga.events import append_order
    from evosaga.orchestrator import app
    from evosaga.orchestrator.maintenance.deploy_check import check_deploy

    async with connections.postgres(settings) as pool:
        verdicts = await check_deploy(pool, app.registry())
        parallel = await append_order.is_parallel(pool)
    fits = all(verdict.fits for verdict in verdicts)
    if out.json:
        told = [verdict.as_dict() for verdict in verdicts]
        out.data({"fits": fits, "sagas": told, "parallel_appends": parallel})
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
        out.table(rows, wrap=("verdict",))
    if parallel:
        out.note(
            "appends commit in parallel: workers of a release without the verb `appends` would not "
            "publish events; before a roll-back to one: evosaga appends --in-order"
        )
    if not fits:
        out.problem(
            "this release would leave sagas behind: keep workers of the old one running beside it "
            "until they are over, or bring the definition back"
        )
    return DONE if fits else UNFINISHED


async def _rebuild(settings: Settings, check: bool, out: Output) -> int:
    from evosaga.orchestrator import app
    from evosaga.orchestrator.cli.render import progress_bar
    from evosaga.orchestrator.maintenance.rebuild import rebuild

    known = app.registry()
    async with connections.postgres(settings) as pool:
        total = await pool.fetchval("SELECT count(*) FROM evosaga.sagas")
        began = time.monotonic()
        with progress_bar("comparing" if check else "rebuilding", out) as progress:
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
