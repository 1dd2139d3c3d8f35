"""The armed faults, and the choice of the one that strikes a request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from evosaga.orchestrator.local.evolution.fault_modes import (
    ALIASES,
    MODES,
    check_where,
    checked_parameters,
)
from evosaga.orchestrator.local.evolution.guards import Call


@dataclass(slots=True)
class Armed:
    """An armed fault; ``left`` None means for ever."""

    id: int
    mode: str
    operation: str | None
    name: str | None
    left: int | None
    parameters: dict[str, Any]
    fired: int = 0

    def strikes(self, operation: str, name: str | None) -> bool:
        if self.left == 0:
            return False
        if self.operation not in (None, operation):
            return False
        if self.operation is None and operation not in MODES[self.mode].operations:
            return False
        if self.name is None or self.name == name:
            return True
        return name is not None and fnmatchcase(name, self.name)

    def fire(self) -> None:
        self.fired += 1
        if self.left is not None:
            self.left -= 1

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.id,
            "mode": self.mode,
            "operation": self.operation,
            "name": self.name,
            "left": self.left,
            "fired": self.fired,
            "parameters": self.parameters,
        }


class Faults:
    """The armed faults, oldest first."""

    def __init__(self) -> None:
        self.armed: list[Armed] = []
        self.fired: dict[str, int] = {}  # by mode, including disarmed ones
        self._last_id = 0

    def arm(
        self,
        mode: str,
        operation: str | None,
        name: str | None,
        times: int | None,
        parameters: Mapping[str, object],
    ) -> Armed:
        mode = ALIASES.get(mode, mode)
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
        check_where(mode, operation)
        if times is not None and (isinstance(times, bool) or times < 1):
            raise ValueError("times must be 1 or more, or null for ever")
        self._last_id += 1
        armed = Armed(
            self._last_id, mode, operation, name, times, checked_parameters(mode, parameters)
        )
        self.armed.append(armed)
        return armed

    def disarm(self) -> None:
        self.armed.clear()

    def plan(self, call: Call) -> tuple[list[Armed], Armed | None]:
        """The acts and delays that strike this request, and the one fault that decides it."""
        first: list[Armed] = []
        for armed in self._matching(call.operation, call.known_as):
            moment = MODES[armed.mode].moment
            if moment == "bend":
                continue
            self._fire(armed)
            call.faults.append(armed.mode)
            if moment not in ("act", "delay"):
                return first, armed
            first.append(armed)
        return first, None

    def bend(self, mode: str, call: Call) -> dict[str, Any] | None:
        """Called by an operation that can behave differently: the parameters, if it shall."""
        if not self.armed:
            return None
        if mode == "db_down" and mode in call.faults:
            return {}  # once down, down for the whole request
        bent = self._bend(mode, call.operation, call.known_as)
        if bent is not None:
            call.faults.append(mode)
        return bent

    def bend_webhook(self, mode: str, name: str) -> dict[str, Any] | None:
        return self._bend(mode, "webhook", name) if self.armed else None

    def _bend(self, mode: str, operation: str, name: str | None) -> dict[str, Any] | None:
        for armed in self._matching(operation, name):
            if armed.mode == mode:
                self._fire(armed)
                return armed.parameters
        return None

    def _fire(self, armed: Armed) -> None:
        armed.fire()
        self.fired[armed.mode] = self.fired.get(armed.mode, 0) + 1

    def _matching(self, operation: str, name: str | None) -> Iterable[Armed]:
        return [armed for armed in self.armed if armed.strikes(operation, name)]
