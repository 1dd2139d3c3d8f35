"""What pages call a step whose stored name does not say what it does."""

from typing import Final

_WORDS: Final = {"pair": "QR code"}


def step_word(step: str) -> str:
    """A step's name as pages show it; addresses and events keep the stored one."""
    return _WORDS.get(step, step)
