"""What the value of an option may look like; argparse says what is wrong with it."""

from __future__ import annotations

import argparse
import re
from typing import Final
from uuid import UUID

_LONGEST_PAGE: Final = 500
_LONGEST_REMARK: Final = 500


def text(value: str) -> str:
    """Text that may be shown and stored."""
    if not value or any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in value):
        raise argparse.ArgumentTypeError("must be UTF-8 text without control characters, not empty")
    return value


def remark(value: str) -> str:
    """Such a text that is no longer than a saga's history takes it."""
    if len(text(value)) > _LONGEST_REMARK:
        raise argparse.ArgumentTypeError(f"must be at most {_LONGEST_REMARK} characters")
    return value


def uuid(value: str) -> str:
    """A UUID, in its usual spelling."""
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a UUID")
    return str(UUID(value))


def number(value: str) -> str:
    """A phone number."""
    if not re.fullmatch(r"[0-9]{6,20}", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a phone number: 6 to 20 digits")
    return value


def letter(value: str) -> str:
    """The id of an entry of a stream."""
    if not re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", value):
        raise argparse.ArgumentTypeError(f"{value!r} is no letter's id, such as 1764439698000-0")
    return value


def seconds(value: str) -> float:
    """Seconds, or another amount that is not negative."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?|\.[0-9]+", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number, 0 or more")
    return float(value)


def _whole(value: str, smallest: int, largest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not smallest <= int(value) <= largest:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from {smallest} to {largest}")
    return int(value)


def port(value: str) -> int:
    """A TCP port; 0 is a free one."""
    return _whole(value, 0, 65535)


def page(value: str) -> int:
    """How many rows a page has."""
    return _whole(value, 1, _LONGEST_PAGE)
