"""What older releases stored of WhatsApp's sagas, in the words of this one."""

from collections.abc import Mapping
from typing import Any, Final

from evosaga.events.upcasting import Upcast


def _only_server(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """There used to be one Evolution server, so nobody wrote down which one it was."""
    facts = data.get("facts", {})
    if data.get("saga") not in _ON_EVOLUTION or "server" in facts:
        return data
    return {**data, "facts": {**facts, "server": "default"}}


_ON_EVOLUTION: Final = frozenset(
    {
        "create-integration",
        "delete-integration",
        "watch-instance",
        "adopt-instance",
        "correct-integration",
        "remove-orphan",
    }
)

UPCASTS: Final[Mapping[str, tuple[Upcast, ...]]] = {"saga.started": (_only_server,)}
