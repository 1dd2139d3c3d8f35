"""All of the product, imported as ``python -W error`` would. Only a fork server needs this."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("error")

    from orchestrator.cli.verbs import VERBS

    for verb in VERBS:
        verb.load()

import tests.chaos.victim  # noqa: F401
