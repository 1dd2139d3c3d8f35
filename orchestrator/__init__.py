"""How sagas are run: the engine, commands, queries, upkeep, and the faces.

Imported as plain ``orchestrator``, which was its name until 0.1, it gives only
``orchestrator.client`` and ``orchestrator.routing``, and says where they live now.
"""

import sys
import warnings
from importlib import import_module

if __name__ == "orchestrator":
    for _name in ("client", "routing"):
        sys.modules[f"orchestrator.{_name}"] = import_module(f"evosaga.orchestrator.{_name}")
        globals()[_name] = sys.modules[f"orchestrator.{_name}"]
    warnings.warn(
        "orchestrator.client and orchestrator.routing are evosaga.client and evosaga.routing now",
        DeprecationWarning,
        stacklevel=2,
    )
