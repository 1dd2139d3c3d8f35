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
API_KEYS: Final = "EVOSAGA_API_KEYS"
HOST: Final = "EVOSAGA_HOST"
PORT: Final = "EVOSAGA_PORT"

VARIABLES: Final = {
    DATABASE: "postgresql://…; without it the embedded Postgres is used",
    REDIS: "redis://…, rediss://… or unix://…; without it the embedded Valkey is used",
    EVOLUTION: "the Evolution API server, https://…",
    EVOLUTION_KEY: "its global API key",
    SECRET: "32 bytes or more, for ownership tokens: openssl rand -hex 32",
    API_KEYS: "name:key or name:key:organization_id, comma separated",
    HOST: "where HTTP listens; 127.0.0.1 without it",
    PORT: "8080 without it",
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
_HTTP = (*_WORKER, API_KEYS, HOST, PORT)

VERBS: Final = (
    Verb(
        "demo",
        "Try it",
        "Watch sagas succeed, fail, be undone and survive a kill -9, on real servers.",
        "evosaga demo",
        "evosaga.orchestrator.demo:run",
        more="It starts a Postgres, a Valkey, a simulated Evolution server and workers of its own, "
        "checks every claim it makes against them, and leaves nothing behind. Less than a minute.",
    ),
    Verb(
        "dev",
        "Try it",
        "Run everything on this machine until Ctrl-C: servers, Evolution, worker, dashboard.",
        "evosaga dev",
        "evosaga.orchestrator.cli.dev:dev",
        _HTTP,
        more="No variable is needed. What is not given is embedded, simulated or generated, and "
        "what it stores is kept in the state folder (EVOSAGA_STATE_DIR) for the next time.",
    ),
    Verb(
        "simulate-evolution",
        "Try it",
        "Run the simulated Evolution server alone, for tests of your own.",
        "evosaga simulate-evolution --port 8080 --journal evolution.jsonl",
        "evosaga.orchestrator.cli.run:simulate_evolution",
        more="It behaves like the real 2.3.7. Faults, pairing and the journal are under "
        "/__control__/. Every request and what it really applied goes to the journal.",
    ),
    Verb(
        "migrate",
        "Run it",
        "Bring the database's schema up to date; safe to repeat, and from several places at once.",
        "evosaga migrate",
        "evosaga.orchestrator.cli.run:migrate",
        (DATABASE,),
    ),
    Verb(
        "worker",
        "Run it",
        "Read commands and carry out sagas until SIGTERM or Ctrl-C.",
        "evosaga worker",
        "evosaga.orchestrator.cli.run:worker",
        _WORKER,
        more="Run as many as you like. SIGTERM lets the steps that are out finish; a second signal "
        "ends at once, and other workers take over what was left.",
    ),
    Verb(
        "serve",
        "Run it",
        "What a deployment runs: the HTTP API, the dashboard and a worker in one process.",
        "evosaga serve --port 8080",
        "evosaga.orchestrator.cli.serve:serve",
        _HTTP,
        more="Ends like a worker: requests and steps that are out finish first.",
    ),
    Verb(
        "api",
        "Run it",
        "The HTTP API and the dashboard alone; workers elsewhere carry out what it accepts.",
        "evosaga api --port 8080",
        "evosaga.orchestrator.cli.serve:api",
        _HTTP,
        more="It accepts commands straight into Postgres, also while Redis is down.",
    ),
    Verb(
        "check-deploy",
        "Run it",
        "Ask, before a deploy or a roll-back, whether this release can finish what is under way.",
        "evosaga check-deploy",
        "evosaga.orchestrator.cli.maintenance:check_deploy",
        (DATABASE,),
        more="Run it with the release that is to take over. Every saga that is running, being "
        "undone or parked is held against its definitions; exit code 1 when any would be stranded.",
    ),
    Verb(
        "doctor",
        "Run it",
        "Look at everything evosaga depends on, and say what to do about what is wrong.",
        "evosaga doctor",
        "evosaga.orchestrator.cli.doctor:doctor",
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
        "evosaga.orchestrator.cli.integrations:create",
        _STORES,
        more="The same --id again with the same content changes nothing: it is safe to repeat.",
    ),
    Verb(
        "delete",
        "Ask for something",
        "Delete an integration from Evolution, Postgres and Redis, and watch it happen.",
        "evosaga delete wa-0197a0de-0000-7000-8000-000000000003",
        "evosaga.orchestrator.cli.integrations:delete",
        _STORES,
    ),
    Verb(
        "qr",
        "Ask for something",
        "Show the QR code that pairs a phone with an integration.",
        "evosaga qr wa-0197a0de-0000-7000-8000-000000000003 --follow",
        "evosaga.orchestrator.cli.qr:qr",
        _WORKER,
        more="With --follow it is renewed until the phone is connected. When Evolution has shown "
        "all its codes, calling it again begins a new series. Without the variables of Evolution "
        "only what webhooks have put into Redis is shown.",
    ),
    Verb(
        "replay",
        "Ask for something",
        "Give parked or rolled back sagas another try; with --plan, show what that would do.",
        "evosaga replay 0197a0de-0000-7000-8000-000000000003 --plan",
        "evosaga.orchestrator.cli.control:replay",
        _WORKER,
        more="A parked saga goes on where it stood; one that was rolled back starts anew under "
        "an id of its own. Many at once: several IDs, or --status failed with a filter. Only "
        "--plan needs the variables of Evolution: it looks at the world and changes nothing; exit "
        "code 1 when a replay would be refused.",
    ),
    Verb(
        "cancel",
        "Ask for something",
        "Stop sagas and undo what they have done, as long as they can still turn round.",
        "evosaga cancel 0197a0de-0000-7000-8000-000000000003",
        "evosaga.orchestrator.cli.control:cancel",
        _STORES,
        more="Exit code 0 when everything was undone.",
    ),
    Verb(
        "reconcile",
        "Keep it true",
        "Show where Evolution, Postgres and Redis disagree, and why; with --fix, repair it.",
        "evosaga reconcile --organization-id 0197a0de-0000-7000-8000-000000000001 --fix",
        "evosaga.orchestrator.cli.reconcile:reconcile",
        _WORKER,
        more="It looks twice and changes nothing by itself. --fix repairs what is marked auto; "
        "what is marked ask is repaired only for the organization that is named, since it can't "
        "be had back. Workers carry the repairs out. Exit code 1 when anything drifted (is left).",
    ),
    Verb(
        "health",
        "Keep it true",
        "Show how each integration is connected right now; with --fix, connect what can be.",
        "evosaga health --fix",
        "evosaga.orchestrator.cli.health:health",
        _WORKER,
        more="Who was logged out or banned needs a person and a new QR code. "
        "Exit code 1 when any integration is not well.",
    ),
    Verb(
        "rebuild",
        "Keep it true",
        "Compare the status of every saga with its history, and put right what differs.",
        "evosaga rebuild --check",
        "evosaga.orchestrator.cli.maintenance:rebuild",
        (DATABASE,),
        more="Safe while workers run, and little memory whatever the size. Exit code 1 when rows "
        "differ and were not repaired.",
    ),
    Verb(
        "events republish",
        "Keep it true",
        "Tell events on evosaga:events once more, from Postgres, in order, with the same ids.",
        "evosaga events republish --since 2h",
        "evosaga.orchestrator.cli.maintenance:republish",
        _STORES,
        more="A Redis that lost its data is told again by the workers themselves; this is for a "
        "consumer that lost what it had read. Consumers deduplicate by id.",
    ),
    Verb(
        "status",
        "See what happened",
        "Show one saga: how far it is, what failed and what was undone.",
        "evosaga status wa-0197a0de-0000-7000-8000-000000000003",
        "evosaga.orchestrator.cli.show:status",
        (DATABASE,),
    ),
    Verb(
        "why",
        "See what happened",
        "Say why a saga is where it is, what happens next and when, and what you can do.",
        "evosaga why wa-0197a0de-0000-7000-8000-000000000003",
        "evosaga.orchestrator.cli.why:why",
        (DATABASE,),
    ),
    Verb(
        "list",
        "See what happened",
        "List sagas, newest first.",
        "evosaga list --status failed --since 2d",
        "evosaga.orchestrator.cli.show:list_sagas",
        (DATABASE,),
    ),
    Verb(
        "events",
        "See what happened",
        "Tell the whole history of one saga, event by event.",
        "evosaga events 0197a0de-0000-7000-8000-000000000003 --follow",
        "evosaga.orchestrator.cli.show:events",
        (DATABASE,),
        more="With --json every line is a CloudEvent, as on the stream evosaga:events.",
    ),
    Verb(
        "letters",
        "See what happened",
        "Show the commands that nobody could obey, newest first, and why; or take them away.",
        "evosaga letters --limit 10",
        "evosaga.orchestrator.cli.dead_letters:letters",
        _STORES,
        more="They lie on the stream evosaga:commands:dead, with every byte that was sent (--json "
        "shows it), until somebody removes them. The README explains the codes.",
    ),
    Verb(
        "completion",
        "See what happened",
        "Print a script that completes verbs and options in bash, zsh or fish.",
        "evosaga completion bash",
        "evosaga.orchestrator.cli.completion:completion",
        more='In ~/.bashrc, or in ~/.zshrc after compinit: eval "$(evosaga completion bash)", with '
        "zsh for zsh. For fish: evosaga completion fish > ~/.config/fish/completions/evosaga.fish",
    ),
)
