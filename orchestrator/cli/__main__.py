"""``python -m evosaga.orchestrator.cli``, for where the ``evosaga`` script is not on the path."""

import sys

from evosaga.orchestrator.cli import main

if __name__ == "__main__":
    sys.exit(main())
