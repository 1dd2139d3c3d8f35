"""The invariants of a run, by what they look at. All of them judge an ``Evidence``."""

from collections.abc import Sequence
from typing import Final

from tests.harness.chaos.checks.effects import EFFECTS
from tests.harness.chaos.checks.histories import HISTORIES, Check
from tests.harness.chaos.checks.messages import MESSAGES
from tests.harness.chaos.checks.rest import REST

CHECKS: Final[Sequence[Check]] = (*HISTORIES, *EFFECTS, *MESSAGES, *REST)
"""All but S11, which is looked at while it runs, and S17, which has to know the secrets."""
