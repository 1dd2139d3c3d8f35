"""Traces for OpenTelemetry, made from the events of sagas, so that they survive any worker.

Nothing here is imported unless a collector is named in the environment as OpenTelemetry has it.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Final

from evosaga.orchestrator.config.settings import SettingsError

VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def configured(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a collector is named. Raises ``SettingsError`` when the extra is not installed."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or not any(environment.get(name) for name in VARIABLES):
        return False
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            raise SettingsError(f"{VARIABLES[1]}: {module} is missing: pip install 'evosaga[otel]'")
    return True
