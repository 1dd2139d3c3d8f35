"""The product: which domains this process runs, and a worker of them.

A domain comes from an installed package (entry points of the group ``evosaga.domains``), from
``EVOSAGA_APP`` or ``--app``, or is WhatsApp, which is on where an Evolution server is configured or
where there is no other domain.
"""

import asyncio
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evosaga.events.background import Broken as Broken
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.domain import Domain, Domains
from evosaga.sagas.definition import DefinitionError
from evosaga.sagas.registry import SagaRegistry

if TYPE_CHECKING:
    from typing import TypeAlias

    from evosaga.orchestrator import worker
    from evosaga.sagas.whatsapp.services import Services

    Worker: TypeAlias = worker.Worker[Services]

GROUP: Final = "evosaga.domains"
OURS: Final = "evosaga"
"""The package of WhatsApp's domain."""
_FOLDER: Final = Path(__file__).resolve().parents[1]


def running_worker(
    settings: Settings, sagas: SagaRegistry | None = None
) -> AbstractAsyncContextManager["Worker"]:
    """A worker of this process's domains; ``sagas``: WhatsApp's services with other sagas."""
    from evosaga.orchestrator import worker  # what reads streams: most verbs never do

    if sagas is not None:
        return worker.running_worker(settings, replace(_whatsapp(), sagas=sagas))
    return worker.running_worker(settings, *domains_of(settings).each)


async def serve_until(stop: asyncio.Event, settings: Settings) -> None:
    """Run it until ``stop`` is set. Raises ``Broken`` when one of its parts dies."""
    from evosaga.orchestrator import worker

    await worker.serve_until(stop, settings, *domains_of(settings).each)


def registry() -> SagaRegistry:
    """Every saga that this process knows. Raises ``SettingsError``."""
    return domains_of(load_settings()).sagas


def domains_of(settings: Settings) -> Domains:
    """The domains that these settings ask for. Raises ``SettingsError`` naming what to mend."""
    evolution = settings.evolution_url is not None or bool(settings.evolution_servers)
    return _domains(settings.app, settings.whatsapp, evolution)


def has_whatsapp(settings: Settings) -> bool:
    """Whether WhatsApp is one of them."""
    return any(one.package == OURS for one in domains_of(settings).each)


@functools.cache
def _domains(app: str | None, whatsapp: bool | None, evolution: bool) -> Domains:
    own = [*_installed(app), *_named(app)]
    if whatsapp is None:
        whatsapp = evolution or not own
    each = [_whatsapp(), *own] if whatsapp else own
    if not each:
        raise SettingsError(
            "there is nothing to run: EVOSAGA_WHATSAPP is off, and no package brings a domain; "
            "install one, or name one in EVOSAGA_APP"
        )
    try:
        return Domains.of(*each)
    except DefinitionError as error:
        raise SettingsError(str(error)) from error


def _whatsapp() -> "Domain[Services]":
    from evosaga.orchestrator.whatsapp.domain import WHATSAPP

    return WHATSAPP


def _installed(app: str | None) -> Iterator[Domain[Any]]:
    """Those of installed packages; what ``app`` names as well is loaded once."""
    named = set((app or "").split(","))
    for point in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        if point.value not in named:
            yield from _loaded(point, f"the package {_package(point)}", "or uninstall it")


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.name


def _named(app: str | None) -> Iterator[Domain[Any]]:
    """Those of ``EVOSAGA_APP``, which may lie in the current folder."""
    for value in filter(None, ((app or "").split(","))):
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        point = EntryPoint(value.strip(), value.strip(), GROUP)
        yield from _loaded(point, f"EVOSAGA_APP {value.strip()!r}", "or name another one")


def _loaded(point: EntryPoint, source: str, otherwise: str) -> list[Domain[Any]]:
    """The domain that an entry point names, or all of a module. Raises ``SettingsError``."""
    module, _, attribute = point.value.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    except Exception as error:
        raise SettingsError(_cure(error, module, source, otherwise)) from error
    every = [found] if attribute else list(vars(found).values())
    domains = [one for one in every if isinstance(one, Domain)]
    if not domains:
        kind = type(found).__name__ if attribute else "module without one"
        raise SettingsError(
            f'{source}: {point.value} is no domain but a {kind}; make one: evosaga.domain("name", '
            f"A_SAGA, services=open_services), {otherwise}"
        )
    label = _package(point) if point.dist else module
    return [replace(one, package=label) for one in domains]


def _cure(error: Exception, module: str, source: str, otherwise: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name):
        return (
            f"{source}: there is no module {error.name!r}; is its package installed in this "
            f"environment ({sys.prefix}), and is the name right?"
        )
    where = _line(error)
    said = str(error) if isinstance(error, DefinitionError) else f"{type(error).__name__}: {error}"
    return f"{source}: {where}{said} (mend it there, {otherwise})"


def _line(error: Exception) -> str:
    """The last line outside evosaga and Python that the error came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if (
            path.is_file()
            and _FOLDER not in path.resolve().parents
            and "importlib" not in path.parts
        ):
            return f"{path}:{frame.lineno}: "
    return ""
