"""Prometheus metrics of WhatsApp's services in one process."""

from typing import TYPE_CHECKING

from evosaga.sagas.whatsapp.services import Services

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def of_servers(services: Services) -> "list[Metric]":
    """The circuit breaker's state for each Evolution server in this process."""
    # Here, since only a process that serves metrics needs the library.
    from prometheus_client.core import GaugeMetricFamily

    said = "1 for the state of the circuit breaker to an Evolution server"
    family = GaugeMetricFamily("evosaga_evolution_breaker", said, labels=["server", "state"])
    for name, server in services.servers.items():
        now = server.state.state
        for state in ("closed", "half-open", "open"):
            family.add_metric([name, state], int(state == now))
    return [family]
