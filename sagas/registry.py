"""Finding the sagas: every ``Saga`` that a module of this package defines.

A new saga is one new file. A changed one is a new version beside the old, which stays as long as
any saga that started under it is open: what started under a version finishes under it.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from evosaga import sagas
from evosaga.sagas.definition import DefinitionError, Saga


@dataclass(frozen=True, slots=True)
class SagaRegistry:
    """All known sagas, by name and version and by the command that starts them."""

    versions: dict[tuple[str, int], Saga]
    by_command: dict[str, Saga]

    def find(self, name: str, version: int) -> Saga | None:
        """That version of that saga, None when this release does not know it."""
        return self.versions.get((name, version))

    @property
    def public(self) -> dict[str, Saga]:
        """The commands that people are told of, and the sagas that they start."""
        return {command: saga for command, saga in self.by_command.items() if not saga.internal}


def registry_of(definitions: Iterable[Saga]) -> SagaRegistry:
    """A registry; the highest version of a saga is the one that commands start.

    Raises ``DefinitionError`` when two sagas claim one version or one command.
    """
    versions: dict[tuple[str, int], Saga] = {}
    by_command: dict[str, Saga] = {}
    for saga in sorted(definitions, key=lambda s: (s.name, s.version)):
        if (saga.name, saga.version) in versions:
            raise DefinitionError(f"saga {saga.name!r} v{saga.version} is defined twice")
        versions[saga.name, saga.version] = saga
        holder = by_command.get(saga.command)
        if holder is not None and holder.name != saga.name:
            raise DefinitionError(
                f"the command {saga.command!r} starts both {holder.name!r} and {saga.name!r}"
            )
        by_command[saga.command] = saga
    return SagaRegistry(versions, by_command)


def discover() -> SagaRegistry:
    """Import every module of this package and collect the sagas they define."""
    found = (module.name for module in pkgutil.walk_packages(sagas.__path__, f"{sagas.__name__}."))
    modules = [importlib.import_module(name) for name in sorted(found)]
    return registry_of({id(saga): saga for m in modules for saga in _defined_in(m)}.values())


def _defined_in(module: ModuleType) -> list[Saga]:
    return [value for value in vars(module).values() if isinstance(value, Saga)]
