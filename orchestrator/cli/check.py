"""The result of one check of ``evosaga doctor``."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``cure`` is empty when there is nothing to do."""

    check: str
    verdict: Literal["ok", "warn", "bad"]
    said: str
    cure: str = ""
