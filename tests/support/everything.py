"""All of the product, imported as ``python -W error`` would. Only a fork server needs this."""

import gc
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("error")

    import evosaga.orchestrator.api.server  # noqa: F401
    from evosaga.orchestrator.cli.verbs import app

    app.resolved_commands()

import tests.harness.chaos.victim
import tests.harness.chaos.worker  # noqa: F401

# Else each process that is forked looks through all of it, and so gets a copy of its own.
gc.collect()
gc.freeze()
