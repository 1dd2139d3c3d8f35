"""Profiles: addresses and API keys of servers, in a file that only their owner can read.

``evosaga login`` writes it. It holds keys, so one that others could read is refused.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from evosaga.orchestrator.cli.errors import WRONG, CliError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A server and the key for it."""

    url: str
    api_key: str = field(repr=False)


@dataclass(slots=True)
class Profiles:
    """The file's content; ``current`` is used where none is named."""

    current: str | None = None
    known: dict[str, Profile] = field(default_factory=dict)

    def named(self, name: str) -> Profile:
        """That profile. Raises ``CliError``."""
        if name not in self.known:
            there = ", ".join(sorted(self.known)) or "none yet"
            cure = f"evosaga login --profile {name}"
            raise CliError(WRONG, f"there is no profile {name!r} (there is: {there}): {cure}")
        return self.known[name]


def checked_name(name: str) -> str:
    """A name that a profile may have. Raises ``CliError``."""
    if not _NAME.fullmatch(name):
        said = "a profile's name has letters, digits, dots, dashes and underscores, at most 64"
        raise CliError(WRONG, f"{name!r} can't name a profile: {said}")
    return name


def path() -> Path | None:
    """Where the file is: ``XDG_CONFIG_HOME`` or ``~/.config``; None for an account without one."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(given):  # a relative one is to be ignored, says the specification
        return Path(given) / "evosaga" / "profiles.json"
    try:
        return Path.home() / ".config" / "evosaga" / "profiles.json"
    except RuntimeError:
        return None


def load(*, named: bool = True) -> Profiles:
    """The profiles; none where there is no file. Raises ``CliError``.

    Not ``named``: nobody asked for one, so a folder that this account can't look into has none.
    """
    file = path()
    if file is None:
        return Profiles()
    try:
        with file.open("rb") as stream:
            _require_private(file, os.fstat(stream.fileno()))
            return _profiles(json.loads(stream.read()))
    except (FileNotFoundError, NotADirectoryError):
        return Profiles()
    except OSError as error:
        if not named and isinstance(error, PermissionError):
            return Profiles()
        said = f"the profiles in {file} can't be read: {error.strerror}"
        raise CliError(WRONG, f"{said}; make the file readable for this account") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        said = f"the profiles in {file} can't be understood"
        raise CliError(WRONG, f"{said}: remove the file, then run `evosaga login` again") from None


def save(profiles: Profiles) -> Path:
    """Replace the file as a whole, with rights for its owner alone. Raises ``CliError``."""
    file = path()
    if file is None:
        said = "this account has no home folder to keep a profile in: set XDG_CONFIG_HOME, or use"
        raise CliError(WRONG, f"{said} EVOSAGA_URL and EVOSAGA_API_KEY instead")
    told = {
        "current": profiles.current,
        "profiles": {
            name: {"url": one.url, "api_key": one.api_key} for name, one in profiles.known.items()
        },
    }
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it with mode 600, so the keys are at no moment readable for others.
        number, temporary = tempfile.mkstemp(dir=file.parent, prefix=".profiles-")
        with os.fdopen(number, "w") as stream:
            json.dump(told, stream, indent=2)
            stream.write("\n")
        os.replace(temporary, file)
    except OSError as error:
        said = f"the profiles can't be written to {file}: {error.strerror}"
        raise CliError(WRONG, f"{said}; XDG_CONFIG_HOME names another folder") from None
    return file


def _require_private(file: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        said = f"{file} holds API keys, and others can use it (mode {mode:o})"
        raise CliError(WRONG, f"{said}: chmod 600 {file}")
    if found.st_uid not in (os.geteuid(), 0):
        said = f"{file} belongs to another account, which could have put anything into it"
        raise CliError(WRONG, f"{said}: remove it, then run `evosaga login`")


def _profiles(told: dict[str, Any]) -> Profiles:
    known = {
        str(name): Profile(str(one["url"]), str(one["api_key"]))
        for name, one in told["profiles"].items()
    }
    current = told.get("current")
    return Profiles(current if current in known else None, known)
