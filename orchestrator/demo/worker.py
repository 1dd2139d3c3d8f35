"""A worker of the demo: ``evosaga worker`` in a process of its own that ends with the demo.

The demo holds the other end of stdin. However the demo ends, kill -9 included, that end closes.
"""

import os
import signal
import sys
import threading

from evosaga.orchestrator.cli import main


def _end_with_the_demo() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock Python wants for itself at its end
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_demo, daemon=True).start()
    sys.exit(main(["worker"]))
