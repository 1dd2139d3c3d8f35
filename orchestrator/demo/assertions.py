"""Assertions of the demo: checked, then printed; one that fails ends the demo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evosaga.orchestrator.demo.environment import Show


class NotSo(Exception):
    """A claim of the demo did not hold: a bug, in the product or in the demo."""


class Assertions:
    """Ticks for what is so."""

    def __init__(self, show: Show) -> None:
        self.held = 0
        self._show = show

    def __call__(self, is_so: bool, sentence: str, found: object = None) -> None:
        """Tell the sentence if it is so. Raises ``NotSo`` with what was found instead."""
        if not is_so:
            raise NotSo(f"{sentence}  (found: {found!r})")
        self.held += 1
        self._show.tick(sentence)


async def eventually(is_so: Callable[[], Awaitable[bool]], what: str, within: float = 10.0) -> None:
    """Wait until something is so. Raises ``NotSo`` after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not await is_so():
        if time.monotonic() > deadline:
            raise NotSo(f"{what}, but not within {within:.0f} s")
        await asyncio.sleep(0.02)
