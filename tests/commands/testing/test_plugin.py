"""``pytest`` in a package of one's own: the starter passes its own tests, and mistakes are told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.testing.hotel import made
from tests.support.commandline import forked
from tests.support.preloaded import run_pytest


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("plugin"), "guest-house")


async def pytest_in(package: Path, *words: str) -> tuple[int, str]:
    given = ("-q", "-p", "no:cacheprovider", *words)
    told = await forked(given, dict(os.environ), package, 100, program=run_pytest)
    return told.code, told.out + told.err


def test_the_starter_passes_its_own_tests_and_its_mistakes_are_caught(package: Path) -> None:
    # From the first byte on, as people start it.
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--evosaga-mutate", "-vv"],
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    said = told.stdout + told.stderr
    assert told.returncode == 0, said
    assert "FakeHotel[1 fault] PASSED" in said
    assert "FakeHotel[mistakes] PASSED" in said


async def test_a_module_that_is_named_is_tortured_and_a_failure_is_a_story(package: Path) -> None:
    sagas = package / "guest_house" / "sagas.py"
    right = sagas.read_text()
    sagas.write_text(right.replace("if ctx.in_doubt:", "if False:"))
    try:
        code, said = await pytest_in(package, "--evosaga", "tests.test_booking", "-k", "FakeHotel")
        faults = said.partition('--evosaga-repeat "')[2].partition('"')[0]
        again, told = await pytest_in(package, "-k", "FakeHotel", "--evosaga-repeat", faults)
    finally:
        sagas.write_text(right)
    assert code == 1
    assert "bank.charge took effect twice" in said
    assert "Again: FakeHotel.torture.repeat(" in said
    assert "Traceback" not in said
    assert again == 1
    assert "bank.charge took effect twice" in told


@pytest.mark.parametrize(
    ("module", "cure"),
    [
        ("nowhere", "--evosaga nowhere: can't be imported (ModuleNotFoundError"),
        ("guest_house.services", "there is nothing to torture; decorate a fake"),
    ],
)
async def test_a_module_with_nothing_to_torture_is_a_usage_error(
    package: Path, module: str, cure: str
) -> None:
    code, said = await pytest_in(package, "--evosaga", module)
    assert code == 4
    assert cure in said
