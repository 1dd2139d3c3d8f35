"""Folders and accounts of the embedded servers."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

# The kernel allows 104 bytes (macOS) or 108 (Linux) for a socket's path.
LONGEST_SOCKET_PATH = 100
# Such a path needs no escaping in a URL and has no comma, which clients take for a list of hosts.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")


class NoStateFolder(Exception):
    """There is no folder for persistent state; the text names what to set."""


@dataclass(frozen=True)
class Account:
    """A Unix account that a server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Home:
    """The paths that belong to one server."""

    path: Path  # persistent data
    sockets: Path  # `path`, or a short stand-in for it: see `socket_folder`
    private: bool  # removed at the end

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def run(self) -> Path:
        """The folder of the server's own socket."""
        return self.sockets / "run"

    @property
    def control(self) -> Path:
        """The supervisor's socket, for owners."""
        return self.sockets / "control"

    @property
    def in_use(self) -> Path:
        """Locked while the server or a child of it uses the data."""
        return self.path / "in-use.lock"

    @property
    def log(self) -> Path:
        """The log of the server and the supervisor."""
        return self.path / "server.log"

    @property
    def remove(self) -> list[str]:
        """Temporary files and folders to remove at the end."""
        sockets = [] if self.sockets == self.path else [str(self.sockets)]
        return ([str(self.path.parent)] if self.private else []) + sockets


def state_folder() -> Path:
    """The folder for state that outlives a run; it may not exist yet.

    `EVOSAGA_STATE_DIR` wins; else it is `evosaga` in `XDG_STATE_HOME` or `~/.local/state`. Root's
    home is closed to the account that Postgres has to run as, so for root it is `/var/lib/evosaga`
    unless `XDG_STATE_HOME` is open to that account. Raises `NoStateFolder` for an account without a
    home.
    """
    try:
        return _state_folder()
    except (RuntimeError, FileNotFoundError) as reason:  # no home, or no current folder
        raise NoStateFolder(
            f"no folder is known to keep things in ({reason}): set EVOSAGA_STATE_DIR to one, or "
            "EVOSAGA_DATABASE_URL and EVOSAGA_REDIS_URL to servers of your own"
        ) from None


def _state_folder() -> Path:
    if chosen := os.environ.get("EVOSAGA_STATE_DIR"):
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore a relative path.
    base = Path(xdg) if os.path.isabs(xdg) else None
    account = account_for_postgres()
    if account is None:
        return (base or Path.home() / ".local" / "state") / "evosaga"
    if base is not None and closed_to(base, account) is None:
        return base / "evosaga"
    return Path("/var/lib/evosaga")


def account_for_postgres() -> Account | None:
    """An existing account for Postgres, which refuses root; None when not root.

    Raises LookupError where neither `postgres` nor `nobody` exists.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise LookupError("running as root, and there is no account `postgres` or `nobody` to use")


def closed_to(path: Path, account: Account) -> Path | None:
    """The first folder on the way to `path` (and `path` itself) that `account` cannot enter."""
    path = path.absolute()
    for folder in (*reversed(path.parents), path):
        try:
            found = folder.stat()
        except FileNotFoundError:
            return None  # it will be created, and open enough
        except PermissionError:
            return folder
        owner = found.st_uid == account.uid and found.st_mode & stat.S_IXUSR
        group = found.st_gid == account.gid and found.st_mode & stat.S_IXGRP
        if not (owner or group or found.st_mode & stat.S_IXOTH):
            return folder
    return None


def private_folder(account: Account | None) -> Path:
    """Make a new temporary folder; `account`, when given, can enter it."""
    import tempfile

    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    is_open = (p for p in places if account is None or closed_to(p, account) is None)
    folder = Path(tempfile.mkdtemp(prefix="evosaga-", dir=next(is_open, None)))
    if account is not None:
        folder.chmod(0o711)
    return folder


def socket_folder(home: Path, longest_name: int) -> Path:
    """Where the sockets of the server in `home` are: there, or in a short folder under /tmp.

    The same `home` gives the same answer in every process. `longest_name` is the length of the
    longest socket name below the folder.
    """
    path = str(home)
    short = len(os.fsencode(path)) + 1 + longest_name <= LONGEST_SOCKET_PATH
    if short and PLAIN_PATH.fullmatch(path):
        return home
    mark = blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).hexdigest()
    return Path("/tmp") / f"evosaga-{os.geteuid()}-{mark}"  # noqa: S108


def make_own_folder(folder: Path, mode: int) -> None:
    """Make `folder` and its missing parents; an existing one must belong to this user.

    Raises PermissionError when it is another user's: a name under /tmp can be guessed.
    """
    for missing in (f for f in (*reversed(folder.parents), folder) if not f.exists()):
        with contextlib.suppress(FileExistsError):  # two processes may start at once
            missing.mkdir()
            missing.chmod(mode)  # whatever the umask is
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    folder.chmod(mode)
