"""What is parked waits for a person, so the log says so where the parking is committed."""

from collections.abc import Sequence

import structlog

from evosaga.events.model import SagaEvent, SagaFailed
from evosaga.orchestrator.engine.instance import SagaInstance

_logger = structlog.get_logger("evosaga.parking")


def tell_parked(live: SagaInstance, committed: Sequence[SagaEvent]) -> None:
    """An ``error`` line for a saga that these events have parked, however it came to that."""
    start = live.state.start
    for event in committed:
        if isinstance(event, SagaFailed) and start is not None:
            _logger.error(
                "saga parked",
                saga_id=str(live.saga_id),
                saga=start.saga,
                step=event.step,
                direction=event.direction,
                code=event.code,
                organization_id=str(start.organization_id) if start.organization_id else None,
                message=event.message,
            )
