"""All of the product, imported as ``python -W error`` would. Only a fork server needs this."""

import gc
import importlib
import pkgutil
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("error")
    gc.disable()  # what is imported stays, so to look for garbage meanwhile finds none

    import anyio._backends._asyncio  # noqa: F401  # what HTTP clients import when they are used
    import httpcore  # noqa: F401

    import evosaga.migrations.upgrade
    import evosaga.orchestrator.api.server
    import evosaga.orchestrator.cli
    import evosaga.orchestrator.config.log_config
    import evosaga.orchestrator.maintenance.deploy_check
    import evosaga.orchestrator.maintenance.rebuild
    import evosaga.orchestrator.maintenance.redis_protocol
    from evosaga.orchestrator.cli.verbs import app
    from evosaga.sagas.whatsapp.evolution.tls import trusted

import tests.harness.chaos.victim
import tests.harness.chaos.worker  # noqa: F401


def _for_verbs() -> None:
    """What a verb imports and reads only when it is run."""
    app.resolved_commands()
    package = evosaga.orchestrator.cli
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    trusted()
    trusted(trust_env=True)  # called as the product does, else the cache has it under another key


with warnings.catch_warnings():
    warnings.simplefilter("error")
    _for_verbs()

# Else each process that is forked looks through all of it, and so gets a copy of its own.
gc.collect()
gc.freeze()
gc.enable()
