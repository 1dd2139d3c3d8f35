"""The invariants of a run, by what they look at. All of them judge an ``Evidence``."""

from collections.abc import Sequence
from typing import Final

from tests.chaos.checks.effects import EFFECTS
from tests.chaos.checks.histories import HISTORIES, Check
from tests.chaos.checks.messages import MESSAGES
from tests.chaos.checks.rest import REST

CHECKS: Final[Sequence[Check]] = (*HISTORIES, *EFFECTS, *MESSAGES, *REST)
"""All but S11, which is looked at while it runs, and S17, which has to know the secrets."""
