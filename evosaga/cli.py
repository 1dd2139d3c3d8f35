"""The program ``evosaga``; says what to install where only the client is."""

import sys
from importlib.util import find_spec

_SERVER = ("asyncpg", "cyclopts", "redis", "structlog")


def main() -> int:
    """Run the command line."""
    if not all(map(find_spec, _SERVER)):
        said = "this installation has the client alone; for the command line and workers: "
        cure = "pip install 'evosaga[server]', or 'evosaga[embedded]' with servers to try it on"
        print(f"evosaga: {said}{cure}", file=sys.stderr)  # noqa: T201  # nothing else is there
        return 2
    from evosaga.orchestrator.cli import main as run

    return run()
