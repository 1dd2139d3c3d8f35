"""What tests of the command line share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cheaper import removals_looked_at_soon


@pytest.fixture(scope="module", autouse=True)
def _looked_at_soon() -> Iterator[None]:
    with removals_looked_at_soon():
        yield


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that Postgres's own account can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="command-line-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder
