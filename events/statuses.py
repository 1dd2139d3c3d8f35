"""Of a row of ``evosaga.sagas``: the statuses in which a saga is not over, as SQL.

Queries of a domain read the view ``evosaga.open_sagas`` instead.
"""

from collections.abc import Mapping
from typing import Final

OPEN_STATUSES: Final = "status IN ('running', 'compensating', 'failed')"
"""A parked saga may still own something, so it keeps its key until replay or cancel frees it."""
ACTIVE_STATUSES: Final = "status IN ('running', 'compensating')"
"""Those that go on by themselves."""

HELD: Final = "held"
"""No status of its own: an active saga whose last attempt was held, since a dependency is away."""
ALIASES: Final[Mapping[str, str]] = {
    "parked": "failed",
    "needs-attention": "failed",
    "needs_attention": "failed",
    "rolled-back": "compensated",
    "rolled_back": "compensated",
    "rolling-back": "compensating",
    "rolling_back": "compensating",
    "succeeded": "completed",
    "done": "completed",
    "refused": "rejected",
}
"""Other words for statuses, which whoever filters by one may write."""
