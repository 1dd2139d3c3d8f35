"""Repairs as commands: what starts the saga that mends one drift. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.keeping.cells import Name
from orchestrator.keeping.table import VERDICTS, Sight
from sagas.vocabulary import server_entry

SEEN: Final[dict[Sight, str]] = {
    "absent": "missing",
    "half": "half",
    "idle": "closed",
    "open": "open",
    "paired": "open",
}


@dataclass(frozen=True, slots=True)
class Command:
    """A repair, as the command that starts its saga. ``data`` may hold a phone number."""

    type: str
    data: Mapping[str, Any]


def command_for(code: str, one: Name, names: Mapping[str, Name]) -> Command | None:
    """The command that repairs it; None for what is only told."""
    match VERDICTS[code].action:
        case "remove":
            return _removal(one)
        case "delete":
            return Command("integration.delete", _about(one))
        case "correct":
            return _correction(code, one)
        case "adopt":
            return _adoption(one, names)
        case "complete":
            return None  # no cell's: ``incomplete`` finds it, and says what mends it
        case "drop":
            return Command("key.drop", {"instance_name": one.name})
        case None:
            return None


def _about(one: Name) -> dict[str, Any]:
    about: dict[str, Any] = {"instance_name": one.name}
    if one.organization_id is not None:
        about["organization_id"] = str(one.organization_id)
    return about


def _removal(one: Name) -> Command | None:
    """With what the instance must carry when it is looked at again, right before it goes."""
    if one.instance is None:
        return None  # only a shadow in memory, which no token opens
    if one.whose == "ours" and one.instance.made_by is not None:
        proof = {"created_by": str(one.instance.made_by), "key_id": one.instance.key_id}
    else:
        proof = {"token_hash": one.instance.token_hash}
    return Command("instance.remove", _about(one) | proof | server_entry(one.instance.server))


def _correction(code: str, one: Name) -> Command:
    assert one.row is not None
    seen = "foreign" if code == "name_taken" else SEEN[one.sight]
    data = {"integration_id": str(one.row.id), "instance_name": one.name, "seen": seen}
    if seen == "open" and one.instance is not None and one.instance.phone:
        data["whatsapp_number"] = one.instance.phone
    return Command("integration.correct", data)


def _adoption(one: Name, names: Mapping[str, Name]) -> Command | None:
    """Let the organization's row name it; without a row, make the one again that it had."""
    assert one.instance is not None
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
    integration = row.id if row else one.instance.made_by
    if integration is None:
        return None
    data = _about(one) | {
        "integration_id": str(integration),
        "token_hash": one.instance.token_hash,
        "seen": SEEN[one.sight],
        **server_entry(one.instance.server),
    }
    if one.instance.phone:
        data["whatsapp_number"] = one.instance.phone
    return Command("instance.adopt", data)
