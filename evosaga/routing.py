"""For workers that route messages: ``from evosaga.routing import ClinicCache, follow``."""

from evosaga.orchestrator.routing import *  # noqa: F403 -- the same names, at their public address
from evosaga.orchestrator.routing import __all__ as __all__
