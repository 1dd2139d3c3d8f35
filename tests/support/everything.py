"""All of the product, imported as ``python -W error`` would. Only a fork server needs this."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("error")

    import evosaga.orchestrator.api.server  # noqa: F401
    from evosaga.orchestrator.cli.verbs import app

    app.resolved_commands()

import tests.harness.chaos.victim
import tests.harness.chaos.worker  # noqa: F401
