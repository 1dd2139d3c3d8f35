"""What tests of the event log share."""

from collections.abc import AsyncIterator

import pytest

from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from tests.support.driving import running_log


@pytest.fixture
async def log(pool: Pool) -> AsyncIterator[EventLog]:
    """An event log with its writer running."""
    async with running_log(pool) as log:
        yield log
