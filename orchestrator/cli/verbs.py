"""What the command line can do, as a table: the texts that teach, and where the work is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

DATABASE: Final = "EVOSAGA_DATABASE_URL"
REDIS: Final = "EVOSAGA_REDIS_URL"
EVOLUTION: Final = "EVOSAGA_EVOLUTION_URL"
EVOLUTION_KEY: Final = "EVOSAGA_EVOLUTION_API_KEY"
SECRET: Final = "EVOSAGA_SECRET_KEY"  # noqa: S105  # its name

VARIABLES: Final = {
    DATABASE: "postgresql://…; without it the embedded Postgres is used",
    REDIS: "redis://…, rediss://… or unix://…; without it the embedded Valkey is used",
    EVOLUTION: "the Evolution API server, https://…",
    EVOLUTION_KEY: "its global API key",
    SECRET: "32 bytes or more, for ownership tokens: openssl rand -hex 32",
}


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. ``work`` is ``module:function``, imported only when it is called."""

    name: str
    group: str
    sentence: str
    example: str
    work: str
    variables: tuple[str, ...] = ()
    more: str = ""

    def load(self) -> Callable[[Any, Any], int]:
        """The function that does it: ``(arguments, output) -> exit code``."""
        module, _, function = self.work.partition(":")
        work: Callable[[Any, Any], int] = getattr(import_module(module), function)
        return work


_STORES = (DATABASE, REDIS)
_WORKER = (*_STORES, EVOLUTION, EVOLUTION_KEY, SECRET)

VERBS: Final = (
    Verb(
        "demo",
        "Try it",
        "Watch sagas succeed, fail, be undone and survive a kill -9, on real servers.",
        "evosaga demo",
        "orchestrator.demo:run",
        more="It starts a Postgres, a Valkey, a simulated Evolution server and workers of its own, "
        "checks every claim it makes against them, and leaves nothing behind. Less than a minute.",
    ),
    Verb(
        "dev",
        "Try it",
        "Run everything on this machine until Ctrl-C: servers, simulated Evolution, worker.",
        "evosaga dev",
        "orchestrator.cli.dev:dev",
        (*_STORES, EVOLUTION, EVOLUTION_KEY, SECRET),
        more="No variable is needed. What is not given is embedded, simulated or generated, and "
        "what it stores is kept in the state folder (EVOSAGA_STATE_DIR) for the next time.",
    ),
    Verb(
        "simulate-evolution",
        "Try it",
        "Run the simulated Evolution server alone, for tests of your own.",
        "evosaga simulate-evolution --port 8080 --journal evolution.jsonl",
        "orchestrator.cli.processes:simulate_evolution",
        more="It behaves like the real 2.3.7. Faults, pairing and the journal are under "
        "/__control__/. Every request and what it really applied goes to the journal.",
    ),
    Verb(
        "migrate",
        "Run it",
        "Bring the database's schema up to date; safe to repeat, and from several places at once.",
        "evosaga migrate",
        "orchestrator.cli.processes:migrate",
        (DATABASE,),
    ),
    Verb(
        "worker",
        "Run it",
        "Read commands and carry out sagas until SIGTERM or Ctrl-C.",
        "evosaga worker",
        "orchestrator.cli.processes:worker",
        _WORKER,
        more="Run as many as you like. SIGTERM lets the steps that are out finish; a second signal "
        "ends at once, and other workers take over what was left.",
    ),
    Verb(
        "serve",
        "Run it",
        "What a deployment runs. There is no HTTP API yet: for now, a schema check and a worker.",
        "evosaga serve",
        "orchestrator.cli.processes:worker",
        _WORKER,
    ),
    Verb(
        "doctor",
        "Run it",
        "Look at everything evosaga depends on, and say what to do about what is wrong.",
        "evosaga doctor",
        "orchestrator.cli.doctor:doctor",
        _WORKER,
        more="Exit code 1 when something is bad (a warning is not), 3 when Postgres or Redis "
        "can't be reached.",
    ),
    Verb(
        "create",
        "Ask for something",
        "Create a WhatsApp integration, watch it happen, and show the QR code to scan.",
        "evosaga create --name 'Clínica Sol' \\\n"
        "      --organization-id 0197a0de-0000-7000-8000-000000000001 \\\n"
        "      --clinic-id 0197a0de-0000-7000-8000-000000000002",
        "orchestrator.cli.asking:create",
        _STORES,
        more="The same --id again with the same content changes nothing: it is safe to repeat.",
    ),
    Verb(
        "delete",
        "Ask for something",
        "Delete an integration from Evolution, Postgres and Redis, and watch it happen.",
        "evosaga delete wa-0197a0de-0000-7000-8000-000000000003",
        "orchestrator.cli.asking:delete",
        _STORES,
    ),
    Verb(
        "replay",
        "Ask for something",
        "Give a parked or rolled back saga another try.",
        "evosaga replay 0197a0de-0000-7000-8000-000000000003 --reason 'Evolution is back'",
        "orchestrator.cli.steering:replay",
        _STORES,
        more="A parked saga goes on where it stood; one that was rolled back starts anew under "
        "an id of its own.",
    ),
    Verb(
        "cancel",
        "Ask for something",
        "Stop a saga and undo what it has done, as long as it can still turn round.",
        "evosaga cancel 0197a0de-0000-7000-8000-000000000003",
        "orchestrator.cli.steering:cancel",
        _STORES,
        more="Exit code 0 when everything was undone.",
    ),
    Verb(
        "status",
        "See what happened",
        "Show one saga: how far it is, what failed and what was undone.",
        "evosaga status wa-0197a0de-0000-7000-8000-000000000003",
        "orchestrator.cli.reading:status",
        (DATABASE,),
    ),
    Verb(
        "list",
        "See what happened",
        "List sagas, newest first.",
        "evosaga list --status failed --since 2d",
        "orchestrator.cli.reading:list_sagas",
        (DATABASE,),
    ),
    Verb(
        "events",
        "See what happened",
        "Tell the whole history of one saga, event by event.",
        "evosaga events 0197a0de-0000-7000-8000-000000000003 --follow",
        "orchestrator.cli.reading:events",
        (DATABASE,),
        more="With --json every line is a CloudEvent, as on the stream evosaga:events.",
    ),
)
