"""Repairs as commands: what starts the saga that mends one drift. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from evosaga.orchestrator.whatsapp.reconciliation.classify import Name
from evosaga.orchestrator.whatsapp.reconciliation.rules import Presence
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS
from evosaga.sagas.whatsapp.types import server_entry

SEEN: Final[dict[Presence, str]] = {
    "absent": "missing",
    "half": "half",
    "idle": "closed",
    "open": "open",
    "paired": "open",
}


@dataclass(frozen=True, slots=True)
class RepairCommand:
    """A repair, as the command that starts its saga. ``data`` may hold a phone number."""

    type: str
    data: Mapping[str, Any]


def command_for(code: str, one: Name, names: Mapping[str, Name]) -> RepairCommand | None:
    """The command that repairs it; None for what is only reported."""
    match VERDICTS[code].action:
        case "remove":
            return _removal(one)
        case "delete":
            return RepairCommand("integration.delete", _about(one))
        case "correct":
            return _correction(code, one)
        case "adopt":
            return _adoption(one, names)
        case "complete":
            return None  # no cell's: ``incomplete`` finds it, and says what mends it
        case "drop":
            return RepairCommand("key.drop", {"instance_name": one.name})
        case None:
            return None


def _about(one: Name) -> dict[str, Any]:
    about: dict[str, Any] = {"instance_name": one.name}
    if one.organization_id is not None:
        about["organization_id"] = str(one.organization_id)
    return about


def _removal(one: Name) -> RepairCommand | None:
    """With what the instance must carry when it is looked at again, right before it goes."""
    if one.instance is None:
        return None  # only a shadow in memory, which no token opens
    if one.whose == "ours" and one.instance.made_by is not None and one.log != "unknown":
        proof = {"created_by": str(one.instance.made_by), "key_id": one.instance.key_id}
    elif one.instance.hidden:
        return None  # nothing would show that it is still the same one
    else:
        proof = {"token_hash": one.instance.token_hash}
    return RepairCommand("instance.remove", _about(one) | proof | server_entry(one.instance.server))


def _correction(code: str, one: Name) -> RepairCommand:
    assert one.row is not None
    seen = "foreign" if code == "name_taken" else SEEN[one.sight]
    data = {"integration_id": str(one.row.id), "instance_name": one.name, "seen": seen}
    if seen == "open" and one.instance is not None and one.instance.phone:
        data["whatsapp_number"] = one.instance.phone
    return RepairCommand("integration.correct", data)


def _adoption(one: Name, names: Mapping[str, Name]) -> RepairCommand | None:
    """Let the organization's row name it; without one, make the row that it had, or a new one."""
    assert one.instance is not None
    if one.instance.hidden:
        return None
    row = next(
        (
            other.row
            for other in names.values()
            if other.row is not None
            and other.row.enabled
            and other.row.organization_id == one.organization_id
        ),
        None,
    )
    anew: dict[str, Any] = {}
    if row is not None:
        integration = row.id
    elif one.whose == "ours" and one.instance.made_by is not None:
        integration = one.instance.made_by
        anew = {"channel": _channel(one.instance), "key_id": one.instance.key_id}
    else:
        # The same for every caller, so that it is made once.
        integration = uuid5(NAMESPACE_URL, f"evosaga/adopted/{one.organization_id}/{one.name}")
        anew = {"channel": _channel(one.instance)}
    data = _about(one) | {
        "integration_id": str(integration),
        "token_hash": one.instance.token_hash,
        "seen": SEEN[one.sight],
        **server_entry(one.instance.server),
        **anew,
    }
    if one.instance.phone:
        data["whatsapp_number"] = one.instance.phone
    return RepairCommand("instance.adopt", data)


def _channel(instance: Instance) -> str:
    return "EVOLUTION" if instance.passive else "WHATSAPP-BAILEYS"
