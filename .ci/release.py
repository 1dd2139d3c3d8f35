"""Builds what would be published, checks it, and writes down what is in it. Publishes nothing.

    python .ci/release.py        dist/: wheel, sdist, evosaga-VERSION.cdx.json (CycloneDX)

The wheel is made from the sdist, as whoever builds from source would. Both are checked by twine;
the SBOM is that of an environment with the wheel and its extra ``server`` alone. twine and
cyclonedx-bom are installed into a throw-away environment: nothing else needs them.
"""
# ruff: noqa: S603, T201 -- running programs and saying so is what this is for

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TOOLS = ("twine==6.2.0", "cyclonedx-bom==7.2.1")
NEEDED = (
    "evosaga/py.typed",
    "evosaga/migrations/env.py",
    "evosaga/migrations/script.py.mako",
    "evosaga/migrations/versions/0001_first_release.py",
    "evosaga/orchestrator/api/documents/docs.html",
    "evosaga/orchestrator/api/pages/static/htmx.min.js",
    "evosaga/orchestrator/api/pages/static/htmx.LICENSE.txt",
    "evosaga/orchestrator/api/pages/templates/base.html",
    "evosaga/orchestrator/cli/starter/sagas.py.txt",
)


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(DIST))
    (sdist,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        built = ("hatchling", "build", "--target", "wheel", "--directory", str(DIST))
        run(sys.executable, "-m", *built, cwd=source)
    (wheel,) = DIST.glob("*.whl")
    check(wheel, version)
    run(sys.executable, "-m", "pytest", "-n", "0", "tests/project/test_licences.py", cwd=ROOT)
    with tempfile.TemporaryDirectory() as folder:
        tools, clean = Path(folder) / "tools", Path(folder) / "clean"
        python, inside = environment(tools, *TOOLS), environment(clean, f"{wheel}[server]")
        run(python, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
        sbom = DIST / f"evosaga-{version}.cdx.json"
        run(python, "-m", "cyclonedx_py", "environment", "--output-file", str(sbom), inside)
    for made in sorted(DIST.iterdir()):
        print(f"{made.relative_to(ROOT)}  {made.stat().st_size:,} bytes")


def check(wheel: Path, version: str) -> None:
    """Stop where the wheel lacks something, or has something that is not ours."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"evosaga-{version}.dist-info/METADATA").decode()
    if missing := [name for name in NEEDED if name not in names]:
        sys.exit(f"{wheel.name} has no {', '.join(missing)}")
    places = ("evosaga/", f"evosaga-{version}.dist-info/", "orchestrator/__init__.py")
    if foreign := [name for name in names if not name.startswith(places) or ".pyc" in name]:
        sys.exit(f"{wheel.name} has what it should not have: {', '.join(foreign[:5])}")
    said = Parser().parsestr(metadata)["Version"]
    if said != version:
        sys.exit(f"{wheel.name} says it is {said}, pyproject.toml says {version}")


def environment(folder: Path, *packages: str) -> str:
    """The Python of a new environment with these packages alone."""
    run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, check=False)
    if done.returncode:
        sys.exit(f"this did not work: {' '.join(command)}")


if __name__ == "__main__":
    main()
