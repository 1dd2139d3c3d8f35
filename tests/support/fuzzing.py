"""Made-up inputs: a few in the suite, many in what is ``long``: ``make chaos`` begins with it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy


def fuzzed(
    *strategies: SearchStrategy[Any], few: int = 40, many: int = 400
) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """In the place of ``@settings`` and ``@given``; each ``@example`` below it is always tried."""

    def decorate(test: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.long)])
        def several(examples: int) -> None:
            chosen = settings(
                deadline=None,
                derandomize=True,
                max_examples=examples,
                suppress_health_check=[HealthCheck.too_slow],  # of a machine that is busy
            )
            chosen(given(*strategies)(test))()

        several.__name__, several.__doc__ = test.__name__, test.__doc__
        return several

    return decorate
