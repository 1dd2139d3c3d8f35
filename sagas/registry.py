"""Finding the sagas: every ``Saga`` that a module of this package defines.

A new saga is one new file. A changed one is a new version beside the old, which stays as long as
any saga that started under it is open: what started under a version finishes under it.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from evosaga import sagas
from evosaga.events.commands import STEERING
from evosaga.sagas.definition import DefinitionError, Saga


@dataclass(frozen=True, slots=True)
class SagaRegistry:
    """All known sagas, by name and version and by the command that starts them."""

    versions: dict[tuple[str, int], Saga]
    by_command: dict[str, Saga]
    packages: Mapping[str, str] = field(default_factory=dict)
    """Where each saga comes from, by its name."""

    def find(self, name: str, version: int) -> Saga | None:
        """That version of that saga, None when this release does not know it."""
        return self.versions.get((name, version))

    @property
    def public(self) -> dict[str, Saga]:
        """The commands that people are told of, and the sagas that they start."""
        return {command: saga for command, saga in self.by_command.items() if not saga.internal}


def registry_of(definitions: Iterable[Saga]) -> SagaRegistry:
    """A registry; the highest version of a saga is the one that commands start.

    Raises ``DefinitionError`` when two sagas claim one version or one command, or one claims a
    command that steers sagas.
    """
    versions: dict[tuple[str, int], Saga] = {}
    by_command: dict[str, Saga] = {}
    for saga in sorted(definitions, key=lambda s: (s.name, s.version)):
        if (saga.name, saga.version) in versions:
            raise DefinitionError(f"saga {saga.name!r} v{saga.version} is defined twice")
        if saga.command in STEERING:
            raise DefinitionError(
                f"saga {saga.name!r} v{saga.version} takes the command {saga.command!r}, which is "
                "evosaga's own: give it another one"
            )
        versions[saga.name, saga.version] = saga
        holder = by_command.get(saga.command)
        if holder is not None and holder.name != saga.name:
            raise DefinitionError(
                f"the command {saga.command!r} starts both {holder.name!r} and {saga.name!r}"
            )
        by_command[saga.command] = saga
    return SagaRegistry(versions, by_command)


def merged(parts: Sequence[tuple[str, SagaRegistry]]) -> SagaRegistry:
    """One registry of those of several packages.

    Raises ``DefinitionError`` where two of them have one saga or one command.
    """
    packages: dict[str, str] = {}
    named: dict[str, tuple[str, Saga]] = {}
    commands: dict[str, tuple[str, Saga]] = {}
    for package, registry in parts:
        for (name, _), saga in sorted(registry.versions.items(), key=lambda one: one[0]):
            packages.setdefault(name, package)
            first = named.setdefault(name, (package, saga))
            _refuse_two("define the saga", name, first, package, saga)
        for command, saga in sorted(registry.by_command.items()):
            first = commands.setdefault(command, (package, saga))
            _refuse_two("take the command", command, first, package, saga)
    every = (saga for _, registry in parts for saga in registry.versions.values())
    known = registry_of(every)
    return SagaRegistry(known.versions, known.by_command, packages)


def _refuse_two(what: str, name: str, first: tuple[str, Saga], package: str, saga: Saga) -> None:
    """Raise ``DefinitionError`` when two packages have one name: both, where, and the cure."""
    other, before = first
    if other != package:
        raise DefinitionError(
            f"{other} and {package} both {what} {name!r} ({before.defined_at} and "
            f"{saga.defined_at}): rename it in one of them, or install only one"
        )


def discover() -> SagaRegistry:
    """Import every module of this package and collect the sagas they define."""
    found = (module.name for module in pkgutil.walk_packages(sagas.__path__, f"{sagas.__name__}."))
    modules = [importlib.import_module(name) for name in sorted(found)]
    return registry_of({id(saga): saga for m in modules for saga in _defined_in(m)}.values())


def _defined_in(module: ModuleType) -> list[Saga]:
    return [value for value in vars(module).values() if isinstance(value, Saga)]
