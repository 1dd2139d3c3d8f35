"""The types of the verbs' parameters: what a value may look like, and what help says of it.

A converter raises ``ValueError`` with a sentence; ``usage`` puts the option's name before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar
from uuid import UUID

from cyclopts import Parameter, Token

from evosaga.orchestrator.cli.output import Output

_LONGEST_PAGE: Final = 500
_LONGEST_REASON: Final = 500
_T = TypeVar("_T")


def _text(value: str) -> str:
    """Text that may be shown and stored."""
    if not value or any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in value):
        raise ValueError("must be UTF-8 text without control characters, not empty")
    return value


def _reason(value: str) -> str:
    """Text that is no longer than the history of a saga takes."""
    if len(_text(value)) > _LONGEST_REASON:
        raise ValueError(f"must be at most {_LONGEST_REASON} characters")
    return value


def _uuid(value: str) -> str:
    """A UUID in its usual spelling; ``UUID`` itself takes others as well."""
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise ValueError(f"{value!r} is not a UUID")
    return str(UUID(value))


def _digits(value: str) -> str:
    """A phone number."""
    if not re.fullmatch(r"[0-9]{6,20}", value):
        raise ValueError(f"{value!r} is not a phone number: 6 to 20 digits")
    return value


def _letter(value: str) -> str:
    """The id of an entry of a stream."""
    if not re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", value):
        raise ValueError(f"{value!r} is no letter's id, such as 1764439698000-0")
    return value


def _amount(value: str) -> float:
    """Seconds or a factor: a plain decimal number, which excludes ``nan`` and ``inf``."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?|\.[0-9]+", value):
        raise ValueError(f"{value!r} is not a number, 0 or more")
    return float(value)


def _whole(smallest: int, largest: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not smallest <= int(value) <= largest:
            raise ValueError(f"{value!r} is not a number from {smallest} to {largest}")
        return int(value)

    return read


def _read(read: Callable[[str], _T], metavar: str, help_: str | None = None) -> Parameter:
    """A parameter whose one value ``read`` understands; the last one when it is repeated."""

    def converter(_: object, tokens: Sequence[Token]) -> _T:
        return read(tokens[-1].value)

    if help_ is None:  # left to the docstring of the verb, which one that is given goes before
        return Parameter(converter=converter, metavar=metavar)
    return Parameter(converter=converter, metavar=metavar, help=help_)


Out = Annotated[Output, Parameter(parse=False)]
"""Where a verb writes; handed over by ``main``."""

Text = Annotated[str, _read(_text, "TEXT")]
Name = Annotated[str, _read(_text, "NAME")]
When = Annotated[str, _read(_text, "WHEN")]
Url = Annotated[str, _read(_text, "URL")]
Uuid = Annotated[str, _read(_uuid, "UUID")]
Digits = Annotated[str, _read(_digits, "DIGITS", "asks for a pairing code as well")]
Letter = Annotated[str, _read(_letter, "LETTER")]
Port = Annotated[int, _read(_whole(0, 65535), "PORT")]
Processes = Annotated[int, _read(_whole(1, 256), "N")]
Seed = Annotated[int, Parameter(metavar="N")]
File = Annotated[Path | None, Parameter(metavar="FILE")]
Key = Annotated[Text | None, Parameter(metavar="KEY")]
ListenHost = Annotated[Text | None, Parameter(help="default: EVOSAGA_HOST, else 127.0.0.1")]
ListenPort = Annotated[Port | None, Parameter(help="default: EVOSAGA_PORT, else 8080; 0: any")]
Page = Annotated[
    int,
    _read(_whole(1, _LONGEST_PAGE), "N", "how many at most (default: 20)"),
    Parameter(alias="-n"),
]
Follow = Annotated[bool, Parameter(alias="-f")]
Seconds = Annotated[float, _read(_amount, "SECONDS")]
Factor = Annotated[float, _read(_amount, "FACTOR")]

Reference = Annotated[
    str, _read(_text, "ID", "a saga id, a command id or an instance name"), Parameter(name="ID")
]
References = Annotated[
    str, _read(_text, "ID", "saga ids, command ids or instance names"), Parameter(name="ID")
]
InstanceName = Annotated[str, _read(_text, "NAME", "the instance's name"), Parameter(name="NAME")]
NoWait = Annotated[bool, Parameter(help="publish and leave")]
Status = Literal[
    "running", "compensating", "completed", "compensated", "failed", "rejected", "held"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which sagas ``replay`` and ``cancel`` are about, and how they go about it."""

    references: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    status: Annotated[str | None, Parameter(parse=False)] = None
    """These two differ between the verbs, which fill them in."""
    saga: Annotated[
        Name | None, Parameter(help="only of this kind, such as create-integration")
    ] = None
    code: Annotated[
        Text | None, Parameter(help="only those that stopped for this reason: list shows it")
    ] = None
    organization_id: Annotated[Uuid | None, Parameter(help="only its sagas", alias="-o")] = None
    since: Annotated[
        When | None, Parameter(help="only those begun since: 2025-12-05T12:00Z, 2d")
    ] = None
    reason: Annotated[str | None, _read(_reason, "TEXT", "recorded in the saga's history")] = None
    yes: Annotated[bool, Parameter(help="don't ask before steering many", alias="-y")] = False
    no_wait: NoWait = False
    timeout: Annotated[
        Seconds | None,
        Parameter(
            help="how long to watch (default: 60, for several 600); the sagas go on after that"
        ),
    ] = None

    @property
    def patience(self) -> float:
        """Seconds to watch."""
        if self.timeout is not None:
            return self.timeout
        return 60.0 if len(self.references) == 1 else 600.0
