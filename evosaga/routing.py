"""For workers that route messages: ``from evosaga.routing import ClinicCache, follow``."""

try:
    # The same names, at their public address.
    from evosaga.orchestrator.routing import *  # noqa: F403
    from evosaga.orchestrator.routing import __all__ as __all__
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"evosaga.routing needs {missing.name}: pip install 'evosaga[server]'", name=missing.name
    ) from None
