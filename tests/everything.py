"""All of the product, imported as ``python -W error`` would. Only a fork server needs this."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("error")

    import orchestrator.api.server  # noqa: F401
    from orchestrator.cli.verbs import VERBS

    for verb in VERBS:
        verb.load()

import tests.chaos.victim
import tests.chaos.worker  # noqa: F401
