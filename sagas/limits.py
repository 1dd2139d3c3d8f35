"""Limits of what several sagas use together: a bank, a mail server, a licence with few seats."""

import re
from dataclasses import dataclass
from typing import Final

_RATE: Final = re.compile(r"(?P<count>[1-9][0-9]{0,6}) ?/ ?(?P<unit>s|min|h)")
_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


class LimitError(ValueError):
    """A limit was written down wrongly."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What all workers together may do with the resource called ``name``.

    ``concurrency``: so many attempts at once. ``rate``: so many begin in a second, minute or hour,
    evenly spread: ``10/s``, ``100/min``, ``500/h``. An attempt that finds no place waits its turn,
    which costs it nothing.
    """

    name: str
    concurrency: int | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        where = f"the limit {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise LimitError(f"{where}: a name has small letters, digits, '_', '-' and '.'")
        if self.concurrency is None and self.rate is None:
            raise LimitError(f"{where} limits nothing: give it concurrency=4 or rate='10/s'")
        if self.concurrency is not None and self.concurrency < 1:
            raise LimitError(f"{where}: concurrency is at least 1")
        if self.rate is not None and not _RATE.fullmatch(self.rate):
            raise LimitError(f"{where}: rate is a number in s, min or h, such as '10/s'")

    @property
    def gap(self) -> float:
        """Seconds between two beginnings; 0: there is no rate."""
        found = _RATE.fullmatch(self.rate or "")
        return _SECONDS[found["unit"]] / int(found["count"]) if found else 0.0

    def __str__(self) -> str:
        said = [f"{self.concurrency} at once"] if self.concurrency is not None else []
        return f"{self.name} ({', '.join([*said, *([self.rate] if self.rate else [])])})"
