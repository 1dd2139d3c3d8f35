"""The program ``evosaga``; says what to install where only the client is."""

import sys

_NEEDED = ("alembic", "asyncpg", "cyclopts", "fastapi", "faststream", "redis", "rich", "structlog")


def main() -> int:
    """Run the command line."""
    try:
        from evosaga.orchestrator.cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        said = "this installation has the client alone; for the command line and workers: "
        cure = "pip install 'evosaga[server]', or 'evosaga[embedded]' with servers to try it on"
        print(f"evosaga: {said}{cure}", file=sys.stderr)  # noqa: T201  # nothing else is there
        return 2
    return run()
