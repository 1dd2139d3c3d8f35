"""Instances of sagas that the log has forgotten, for ``evosaga recover``.

They are judged by the truth table like all others; what the log would say of them is taken from the
events that were published. What has (or had) a phone is never removed here, and what no event
speaks of may be another deployment's: a person decides about both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal
from uuid import NAMESPACE_URL, uuid5

from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.orchestrator.commands.forgotten import ForgottenSaga, Leftover
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler, find
from evosaga.sagas.whatsapp.services import Services

_WITHOUT_ROW: Final = ("unrecorded", "row_gone", "rowless", "orphan", "duplicate", "contested")
_DOES: Final[Mapping[str, Literal["adopt", "remove"]]] = {
    "row_gone": "adopt",
    "rowless": "remove",
    "orphan": "remove",
}
_BY_HAND: Final = "it has a phone; if it is not needed: evosaga reconcile --fix --remove {}"


async def leftovers(
    settings: Settings,
    pool: Pool,
    services: Services,
    handler: CommandHandler,
    forgotten: Sequence[ForgottenSaga],
) -> list[Leftover]:
    """Instances that bear our token and have no row, as far as their saga is not in the log.

    Raises ``ObservationFailed`` when no Evolution server can be believed.
    """
    keeper = Reconciler(pool, services, handler, quiet=settings.quiet_seconds)
    found = await find(keeper, kinds=_WITHOUT_ROW, forgotten=forgotten)
    return [
        _leftover(drift, drift.where in found.paired, found.forgotten.get(drift.where))
        for drift in found.drifts
        if drift.where in found.forgotten or drift.what == "unrecorded"
    ]


def _leftover(drift: Drift, paired: bool, token_hash: str | None) -> Leftover:
    about = Leftover(drift.what, drift.where, drift.organization_id, drift.cause, drift.repair)
    does = _DOES.get(drift.what)
    if drift.command is None or does is None or drift.policy == "never":
        return about
    if does == "remove" and (paired or drift.policy != "auto"):
        return replace(about, repair=_BY_HAND.format(drift.where)) if paired else about
    # The same for everybody who recovers from the same loss, so that it is mended once.
    id_ = str(uuid5(NAMESPACE_URL, f"evosaga/recover/{drift.what}/{drift.where}"))
    data = dict(drift.command.data)
    if does == "remove":  # the log has no create that is over, so its token proves what it is
        data = {k: v for k, v in data.items() if k not in ("created_by", "key_id")}
        data["token_hash"] = token_hash
    command = Command(id_, drift.command.type, data)
    return replace(about, does=does, command=command)
