"""Of a row of ``evosaga.sagas``: the statuses in which a saga is not over, as SQL.

Queries of a domain read the view ``evosaga.open_sagas`` instead.
"""

from typing import Final

OPEN_STATUSES: Final = "status IN ('running', 'compensating', 'failed')"
"""A parked saga may still own something, so it keeps its key until replay or cancel frees it."""
ACTIVE_STATUSES: Final = "status IN ('running', 'compensating')"
"""Those that go on by themselves."""
