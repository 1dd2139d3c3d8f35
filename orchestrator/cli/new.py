"""The verb ``new``: a package of one's own to begin with."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from evosaga.orchestrator.cli import params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError

_TEMPLATES: Final = Path(__file__).parent / "starter"
_FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "{}/services.py": "services.py",
    "{}/sagas.py": "sagas.py",
    "tests/test_booking.py": "test_booking.py",
}
_TAKEN: Final = ("evosaga", "tests", "test")


def new(name: Annotated[params.Name, Parameter(name="NAME")], /, *, out: params.Out) -> int:
    """Make a package with one saga, its test and its torture.

    Args:
        name: of the package and its folder, such as hotel
    """
    folder, package = Path(name), name.replace("-", "_")
    taken = package in _TAKEN or package in sys.stdlib_module_names or keyword.iskeyword(package)
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or taken:
        raise CliError(WRONG, f"{name!r} can't be a package's name; take one such as hotel")
    try:
        folder.mkdir()
        written = write(folder, name)
        (folder / package / "__init__.py").write_text(f'"""Sagas of {name}."""\n')
    except FileExistsError:
        raise CliError(WRONG, f"{name} exists already; choose another name") from None
    if out.json:
        out.data({"folder": str(folder.resolve()), "files": [str(one) for one in written]})
        return DONE
    out.line(f"{name} is made. Try it:")
    for line in (f"cd {name}", "pip install -e '.[test]'", "pytest", "evosaga dev"):
        out.line(f"  {line}")
    return DONE


def write(folder: Path, name: str) -> list[Path]:
    """Write the files of the starter into that folder; their paths in it."""
    package = name.replace("-", "_")
    written = []
    for place, template in _FILES.items():
        path = Path(place.format(package))
        text = (_TEMPLATES / f"{template}.txt").read_text()
        text = text.replace("{{name}}", name).replace("{{package}}", package)
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
        written.append(path)
    return written
