"""The file ``.env`` of the folder one is in: found, readable, or a sentence that says why not."""

import logging
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Final

DOTENV: Final = ".env"
_NAMES: Final = ("DATABASE_URL", "REDIS_URL")


class DotenvError(Exception):
    """There is a ``.env``, and it can't be read; the text says what to do."""


def dotenv() -> Path | None:
    """The file, or None where there is none. Raises ``DotenvError``.

    Of a folder that this account can't look into nothing is meant for it.
    """
    path = Path(DOTENV)
    try:
        if not path.is_file():
            return None
    except OSError:
        return None
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        said = f"{_where()} is no UTF-8 (byte {error.start})"
        raise DotenvError(f"{said}: save it as UTF-8") from None
    except OSError as error:
        said = f"{_where()} can't be read: {error.strerror or type(error).__name__}"
        raise DotenvError(f"{said}; make it readable for this account") from None
    _refuse_unreadable_lines(text)
    return path


def _refuse_unreadable_lines(text: str) -> None:
    """Such a line is left out by the parser, and with it a variable of ours that is in it.

    Those of other programs are none of our business, so the parser's remark on them is kept quiet.
    """
    from dotenv.parser import parse_stream

    logging.getLogger("dotenv.main").setLevel(logging.ERROR)
    for binding in parse_stream(StringIO(text)):
        if binding.error and "EVOSAGA_" in binding.original.string:
            said = f"line {binding.original.line} of {_where()} can't be understood"
            raise DotenvError(f"{said}: write NAME=value, and close the quotes that you open")


def overlooked() -> str | None:
    """Why no ``.env`` was looked for here, as a remark; None where one would have been found."""
    try:
        Path(DOTENV).is_file()
    except OSError as error:
        return f"no .env is read here: {error.strerror or type(error).__name__}"
    return None


def said_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that settings may come from."""
    return {
        name: value
        for name, value in environment.items()
        if name.upper().startswith("EVOSAGA_") or name.upper() in _NAMES
    }


def _where() -> str:
    try:
        return str(Path.cwd() / DOTENV)
    except OSError:
        return DOTENV
