"""The Python client of the HTTP API: ``from evosaga.client import Client``."""

from evosaga.orchestrator.client import *  # noqa: F403 -- the same names, at their public address
from evosaga.orchestrator.client import __all__ as __all__
