"""A server that can't be prepared says why, whatever its tool did with what it was given."""

import signal
from pathlib import Path

import pytest

from evosaga.orchestrator.local.server_process import Failed, ManagedServer, ServerSpec
from tests.support.waiting import wait_until


def spec(folder: Path, prepare: list[tuple[list[str], str]]) -> ServerSpec:
    """A server of which only the preparation is ever run."""
    return ServerSpec(
        facts={},
        folders=[],
        data=str(folder / "data"),
        prepare=prepare,
        command=["true"],
        address=str(folder / "socket"),
        greeting="",
        welcome="",
        quit_signal=signal.SIGTERM,
        abandon_signal=signal.SIGTERM,
        control=str(folder / "control"),
        in_use=str(folder / "in-use"),
        log=str(folder / "log"),
        remove=[],
    )


class Late(str):
    """Written only once the reader has closed its end, which is a matter of chance otherwise."""

    closed: Path

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        wait_until(self.closed.exists)
        return super().encode(encoding, errors)


@pytest.mark.parametrize("size", [7, 1_000_000], ids=["buffered", "more than a pipe holds"])
def test_what_ends_before_it_reads_its_input_is_told_with_its_own_words(
    tmp_path: Path, size: int
) -> None:
    words = Late("x" * size)
    words.closed = tmp_path / "closed"
    refuses = f"exec <&-; touch '{words.closed}'; echo the folder is closed; exit 3"
    server = ManagedServer(spec(tmp_path, [(["sh", "-c", refuses], words)]))
    with pytest.raises(Failed, match="the folder is closed"):
        server.start()
