"""``health``, ``reconcile`` and ``qr`` over HTTP: what the server found last; with ``--fix`` it
looks now, and repairs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.output import printable
from evosaga.orchestrator.cli.reconcile import check_options
from evosaga.orchestrator.cli.reconcile_report import draw_described
from evosaga.orchestrator.cli.remote.session import connect, wait_of
from evosaga.orchestrator.cli.show import clock
from evosaga.orchestrator.client import Conflict, Unavailable

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target

_UNNAMED: Final = {"server": "a server could not be checked"}
"""What the key of an organization gets instead of the names of servers."""
_EVERY: Final = 1.0
_CHECK: Final = "120"
"""Seconds for a check of all integrations that also connects them."""


def health(*, fix: bool = False, target: Target, out: Output) -> int:
    """Show how each integration was connected at the last check; with ``--fix`` check now."""
    return asyncio.run(_fix_health(target, out) if fix else _health(target, out))


async def _fix_health(target: Target, out: Output) -> int:
    from evosaga.orchestrator.cli.health import tell

    async with connect(target, looks=True) as client:
        told = await client.post("/health/fix", params={"wait": _CHECK})
    away = told["summary"].get("not_looked_at")
    return tell(told, {"": str(away)} if away else {}, out)


async def _health(target: Target, out: Output) -> int:
    from evosaga.orchestrator.cli.health import tell_connections

    found: list[dict[str, Any]] = []
    checked: str | None = None
    params: dict[str, str] = {"limit": "1000"}
    async with connect(target) as client:
        while True:
            page = await client.get("/health", params)
            checked = page["checked_at"]
            found += page["connections"]
            if page["cursor"] is None:
                break
            params["cursor"] = page["cursor"]
    told = [
        {
            "instance": one["instance_name"],
            "name": one["name"],
            "organization": str(one["organization_id"]),
            "id": one["integration_id"],
            "row": one["status"],
            "state": one["state"],
            "since": _seconds(one["since"]),
            "cure": one["cure"],
            "well": one["well"],
        }
        for one in found
    ]
    ill = [one for one in told if not one["well"]]
    code = UNFINISHED if ill else DONE
    states = dict(Counter(one["state"] for one in told))
    if out.json:
        summary = {"states": states, "checked_at": checked}
        out.data({"integrations": told, "summary": summary})
        return code
    tell_connections(told, states, out)
    out.note(_as_of("checked", checked))
    return code


def reconcile(
    *,
    organization_id: str | None = None,
    fix: bool = False,
    keep: str | None = None,
    remove: tuple[str, ...] = (),
    timeout: float = 120.0,
    target: Target,
    out: Output,
) -> int:
    """Show what the server's last comparison of the stores found; with ``--fix`` compare now."""
    check_options(organization_id, fix=fix, keep=keep, remove=remove)
    if not fix:
        if keep:
            raise CliError(WRONG, "over HTTP --keep is for repairs: give --fix as well")
        return asyncio.run(_drifts(target, organization_id, out))
    given = {"organization_id": organization_id, "keep": keep, "wait": wait_of(timeout)}
    wanted: dict[str, str | list[str]] = {k: v for k, v in given.items() if v is not None}
    return asyncio.run(_repair(target, wanted | {"remove": list(remove)}, out))


async def _repair(target: Target, wanted: dict[str, str | list[str]], out: Output) -> int:
    from evosaga.orchestrator.cli.reconcile import tell

    async with connect(target, looks=True) as client:
        told = await client.post("/drifts/repair", params=wanted)
    if not out.json and told["before"]:
        draw_described(told["before"], out)
    if told.get("not_looked_at") == _UNNAMED:
        told["not_looked_at"] = {"": _UNNAMED["server"]}
    if stopped := told.pop("stopped"):
        out.problem(stopped)
    return tell(told, out, fixed=True, one="organization_id" in wanted)


async def _drifts(target: Target, organization_id: str | None, out: Output) -> int:
    params = {"limit": "1000"} | ({"organization_id": organization_id} if organization_id else {})
    async with connect(target) as client:
        told = await client.get("/drifts", params)
    drifts = told["drifts"]
    if out.json:
        out.data(told)
        return UNFINISHED if drifts else DONE
    if not drifts:
        out.line("the stores agreed" if told["compared_at"] else "nothing was compared yet")
    draw_described(drifts, out)
    if told["more"]:
        out.note(f"{told['more']} more are known; the dashboard has them all")
    if told["unfinished"]:
        out.note(f"the comparison was incomplete: {told['unfinished']}")
    out.note(_as_of("compared", told["compared_at"]))
    return UNFINISHED if drifts else DONE


def qr(
    instance_name: str,
    /,
    *,
    follow: bool = False,
    number: str | None = None,
    target: Target,
    out: Output,
) -> int:
    """Show the QR code; with ``--follow`` until the phone is connected."""
    return asyncio.run(_qr(target, instance_name, follow, number, out))


async def _qr(target: Target, name: str, follow: bool, number: str | None, out: Output) -> int:
    params = {"number": number} if number else {}
    shown: Any = None
    async with connect(target) as client:
        again = {"again": "true"}
        while True:
            try:
                told = await client.get(
                    f"/integrations/evolution/{quote(name, safe='')}/qr", params | again
                )
            except Conflict as error:
                return _no_code(error, name, out)
            except Unavailable as error:
                if error.code == "unreachable" or not follow:
                    raise
                told = {"qr_code": shown, "message": error.message}
            again = {}
            if told["qr_code"] != shown:
                shown = told["qr_code"]
                _show(name, told, out, follow=follow)
            if not follow:
                return DONE
            await asyncio.sleep(_EVERY)


def _no_code(error: Conflict, name: str, out: Output) -> int:
    """There is nothing to scan: that is well when the phone is paired."""
    paired = error.code == "already_connected"
    if out.json:
        state = error.body.get("state")
        told = {"instance_name": name, "state": state, "message": error.message, "qr_code": None}
        out.data(told)
    else:
        out.line(printable(f"{name}: {error.message}"))
    return DONE if paired or error.body.get("state") == "not_needed" else UNFINISHED


def _show(name: str, told: dict[str, Any], out: Output, *, follow: bool) -> None:
    from evosaga.orchestrator.cli.render import draw_qr

    code = told["qr_code"]
    if out.json:
        told = {"instance_name": name, "state": "qr", "message": told["message"], "qr_code": code}
        out.data(told)
        return
    if code.get("pairing_code"):
        out.line(printable(f"pairing code: {code['pairing_code']}"))
    out.line(printable(f"{told['message']}{', within a minute' if not follow else ''}:"))
    draw_qr(out, str(code["code"]))


def _seconds(at: str | None) -> str | None:
    return datetime.fromisoformat(at).isoformat(timespec="seconds") if at else None


def _as_of(done: str, at: str | None) -> str:
    when = clock(datetime.fromisoformat(at)) if at else "never yet"
    return f"{done} by the server: {when}"
