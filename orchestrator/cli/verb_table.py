"""The verbs as a table: what help says of each, and where its function is.

Nothing heavy is imported, so the front page of help can be drawn from it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

DATABASE: Final = "EVOSAGA_DATABASE_URL"
REDIS: Final = "EVOSAGA_REDIS_URL"
SERVER: Final = ("EVOSAGA_URL", "EVOSAGA_API_KEY", "EVOSAGA_PROFILE")
"""Of verbs that go over HTTP as well."""
_STORES: Final = (DATABASE, REDIS)
_WORKER: Final = (
    *_STORES,
    "EVOSAGA_EVOLUTION_URL",
    "EVOSAGA_EVOLUTION_API_KEY",
    "EVOSAGA_SECRET_KEY",
)
_HTTP: Final = (*_WORKER, "EVOSAGA_API_KEYS", "EVOSAGA_HOST", "EVOSAGA_PORT")
_SOME_ID: Final = "0197a0de-0000-7000-8000-00000000000"

SUMMARY: Final = (
    "evosaga keeps Evolution API, Postgres and Redis in agreement: every create and every "
    "delete of a WhatsApp integration happens in all three, or is undone in all three."
)
USAGE: Final = "evosaga [--json] [--debug] VERB …"
COMMON: Final = "Options, before or after the verb"
JSON: Final = "JSON on stdout, for programs (verbs that print data)"
APP: Final = "a domain of your own (also: EVOSAGA_APP)"
DEBUG: Final = "the traceback of what fails (also: EVOSAGA_LOG_LEVEL=debug)"

URL: Final = "speak to this server over HTTP, with an API key and nothing else (EVOSAGA_URL)"
API_KEY: Final = "the key for it (EVOSAGA_API_KEY)"
PROFILE: Final = "the server and key that `evosaga login` has kept under NAME (EVOSAGA_PROFILE)"


class Verb(NamedTuple):
    """A verb. ``work`` is ``module:function`` below ``evosaga.orchestrator``."""

    name: str
    group: str
    work: str
    sentence: str
    more: str = ""
    example: str = ""
    needs: tuple[str, ...] = ()
    """The environment variables that matter to it."""
    usage: str = ""
    """Where the one that cyclopts makes would not name the arguments."""


PROCESSES: Final = frozenset({"api", "migrate", "serve", "worker"})
"""Verbs that mean something without any further word. Such a call is not parsed, since to import
what parses it takes a tenth of a worker's start."""
WHATSAPP: Final = frozenset(
    f"cli.{name}" for name in ("health", "integration_lists", "integrations", "qr", "reconcile")
)
"""Where the verbs are that are about integrations."""
WHATSAPP_GROUPS: Final = frozenset({"integrations", "drifts"})

VERBS: Final = (
    Verb(
        "demo",
        "Try it",
        "demo:run",
        "Watch sagas succeed, fail, be undone and survive a kill -9, on real servers.",
        more="It starts a Postgres, a Valkey, a simulated Evolution server and workers of its own, "
        "checks every claim it makes against them, and leaves nothing behind. Less than a minute.",
    ),
    Verb(
        "dev",
        "Try it",
        "cli.dev:dev",
        "Run everything on this machine until Ctrl-C: servers, Evolution, worker, dashboard.",
        more="No variable is needed. What is not given is embedded, simulated or generated, and "
        "what it stores is kept in the state folder (EVOSAGA_STATE_DIR) for the next time.",
        needs=_HTTP,
    ),
    Verb(
        "new",
        "Try it",
        "cli.new:new",
        "Make a package of your own to begin with: one saga, its test, and its torture.",
        example="new hotel",
    ),
    Verb(
        "simulate-evolution",
        "Try it",
        "cli.run:simulate_evolution",
        "Run the simulated Evolution server alone, for tests of your own.",
        more="It behaves like the real 2.3.7. Faults, pairing and the journal are under "
        "/__control__/. Every request and what it really applied goes to the journal.",
        example="simulate-evolution --port 8080 --journal evolution.jsonl",
    ),
    Verb(
        "migrate",
        "Run it",
        "cli.run:migrate",
        "Bring the database's schema up to date; safe to repeat, and from several places at once.",
        needs=(DATABASE,),
    ),
    Verb(
        "worker",
        "Run it",
        "cli.run:worker",
        "Read commands and carry out sagas until SIGTERM or Ctrl-C.",
        more="Run as many as you like. SIGTERM lets the steps that are out finish; a second signal "
        "ends at once, and other workers take over what was left. --processes 4 runs four on this "
        "machine, and starts again what dies.",
        needs=_WORKER,
    ),
    Verb(
        "serve",
        "Run it",
        "cli.serve:serve",
        "What a deployment runs: the HTTP API, the dashboard and a worker in one process.",
        more="Ends like a worker: requests and steps that are out finish first.",
        example="serve --port 8080",
        needs=_HTTP,
    ),
    Verb(
        "api",
        "Run it",
        "cli.serve:api",
        "The HTTP API and the dashboard alone; workers elsewhere carry out what it accepts.",
        more="It accepts commands straight into Postgres, also while Redis is down.",
        example="api --port 8080",
        needs=_HTTP,
    ),
    Verb(
        "check-deploy",
        "Run it",
        "cli.maintenance:check_deploy",
        "Ask, before a deploy or a roll-back, whether this release can finish what is under way.",
        more="Run it with the release that is to take over. Every saga that is running, being "
        "undone or parked is held against its definitions; exit code 1 when any would be stranded.",
        needs=(DATABASE,),
    ),
    Verb(
        "appends",
        "Run it",
        "cli.appends:appends",
        "Show whether commits of events wait for one another; --parallel lets them overlap.",
        more="For many workers, or a synchronous standby. It is kept in "
        "Postgres, holds for all workers at once and can be switched while they run. Workers of a "
        "release without this verb do not publish events while it is parallel: switch back "
        "(--in-order) before a roll-back to one.",
        example="appends --parallel",
        needs=(DATABASE,),
    ),
    Verb(
        "doctor",
        "Run it",
        "cli.doctor:doctor",
        "Look at everything evosaga depends on, and say what to do about what is wrong.",
        more="Exit code 1 when something is bad (a warning is not), 3 when Postgres or Redis "
        "can't be reached.",
        needs=_WORKER,
    ),
    Verb(
        "login",
        "Reach a server",
        "cli.login:login",
        "Keep the address and an API key of a server, so that verbs speak to it over HTTP.",
        more="The key is tried first, and kept in a file that only you can read, in the folder "
        "for settings (XDG_CONFIG_HOME). Without a database at hand the last one is used; "
        "--profile NAME or EVOSAGA_PROFILE chooses another.",
        example="login --url https://evosaga.example.com --profile prod",
    ),
    Verb(
        "logout",
        "Reach a server",
        "cli.login:logout",
        "Forget the address and the key of a server.",
        example="logout --profile prod",
    ),
    Verb(
        "start",
        "Ask for something",
        "cli.start:start",
        "Start a saga by its command, and watch it happen.",
        more="Which commands there are, and what their data looks like: evosaga sagas --schema. "
        "The same --id again with the same content changes nothing: it is safe to repeat.",
        example="""start room.book --data '{"room": 101, "guest": "ada"}'""",
        needs=(*SERVER, *_STORES),
    ),
    Verb(
        "create",
        "Ask for something",
        "cli.integrations:create",
        "Create a WhatsApp integration, watch it happen, and show the QR code to scan.",
        more="The same --id again with the same content changes nothing: it is safe to repeat.",
        example="create --name 'Clínica Sol' \\\n"
        f"      --organization-id {_SOME_ID}1 \\\n      --clinic-id {_SOME_ID}2",
        needs=(*SERVER, *_STORES),
    ),
    Verb(
        "delete",
        "Ask for something",
        "cli.integrations:delete",
        "Delete an integration from Evolution, Postgres and Redis, and watch it happen.",
        example=f"delete wa-{_SOME_ID}3",
        needs=(*SERVER, *_STORES),
    ),
    Verb(
        "qr",
        "Ask for something",
        "cli.qr:qr",
        "Show the QR code that pairs a phone with an integration.",
        more="With --follow it is renewed until the phone is connected. When Evolution has shown "
        "all its codes, calling it again begins a new series. Without the variables of Evolution "
        "only what webhooks have put into Redis is shown.",
        example=f"qr wa-{_SOME_ID}3 --follow",
        needs=(*SERVER, *_WORKER),
    ),
    Verb(
        "replay",
        "Ask for something",
        "cli.control:replay",
        "Give parked or rolled back sagas another try; with --plan, show what that would do.",
        more="A parked saga goes on where it stood; one that was rolled back starts anew under "
        "an id of its own. Many at once: several IDs, or --status failed with a filter. Only "
        "--plan needs the variables of Evolution: it looks at the world and changes nothing; exit "
        "code 1 when a replay would be refused.",
        example=f"replay {_SOME_ID}3 --plan",
        needs=(*SERVER, *_WORKER),
        usage="replay [OPTIONS] ID…, or evosaga replay --status STATUS",
    ),
    Verb(
        "cancel",
        "Ask for something",
        "cli.control:cancel",
        "Stop sagas and roll back what they have done, up to their point of no return.",
        more="Exit code 0 when everything was undone.",
        example=f"cancel {_SOME_ID}3",
        needs=(*SERVER, *_STORES),
        usage="cancel [OPTIONS] ID…, or evosaga cancel --status STATUS",
    ),
    Verb(
        "reconcile",
        "Keep it true",
        "cli.reconcile:reconcile",
        "Show where Evolution, Postgres and Redis disagree, and why; with --fix, repair it.",
        more="It looks twice and changes nothing by itself. --fix repairs what is marked auto; "
        "what is marked ask is repaired only for the organization that is named, since it can't "
        "be had back. Workers carry the repairs out. Exit code 1 when anything drifted (is left).",
        example=f"reconcile --organization-id {_SOME_ID}1 --fix",
        needs=(*SERVER, *_WORKER),
    ),
    Verb(
        "health",
        "Keep it true",
        "cli.health:health",
        "Show how each integration is connected right now; with --fix, connect what can be.",
        more="A phone that was logged out or banned needs a new QR code. "
        "Exit code 1 when any integration is not well.",
        example="health --fix",
        needs=(*SERVER, *_WORKER),
    ),
    Verb(
        "recover",
        "Keep it true",
        "cli.recover:recover",
        "Show what Postgres has forgotten after a restore or a failover; with --fix, heal it.",
        more="Commands that were acknowledged and are not known are taken again, instances of ours "
        "without a row are adopted or removed (never one with a phone), and events are told in a "
        "new epoch. Until then no event is told and nothing is removed. Exit code 1 when something "
        "was forgotten (is left).",
        example="recover --fix",
        needs=(*SERVER, *_WORKER),
    ),
    Verb(
        "alerts",
        "Keep it true",
        "cli.alerts:app",
        "Show what is wrong now; `alerts test` tries the receivers, `alerts receivers` shows them.",
        more="Alerts are told to EVOSAGA_ALERTS_URL and EVOSAGA_RECEIVERS by a worker or the API, "
        "until they are taken; what is over is told as well.",
    ),
    Verb(
        "rebuild",
        "Keep it true",
        "cli.maintenance:rebuild",
        "Compare the status of every saga with its history, and put right what differs.",
        more="Safe while workers run, and little memory whatever the size. Exit code 1 when rows "
        "differ and were not repaired.",
        example="rebuild --check",
        needs=(DATABASE,),
    ),
    Verb(
        "sagas",
        "See what happened",
        "cli.start:sagas",
        "List the sagas that are known here: their commands, steps and packages.",
        more="A package of your own brings its sagas by an entry point of the group "
        "evosaga.domains, or is named with --app MODULE:NAME (also: EVOSAGA_APP).",
        example="sagas --schema",
        needs=SERVER,
    ),
    Verb(
        "status",
        "See what happened",
        "cli.show:status",
        "Show one saga: how far it is, what failed and what was undone.",
        example=f"status wa-{_SOME_ID}3",
        needs=(*SERVER, DATABASE),
    ),
    Verb(
        "why",
        "See what happened",
        "cli.why:why",
        "Say why a saga is where it is, what happens next and when, and what you can do.",
        example=f"why wa-{_SOME_ID}3",
        needs=(*SERVER, DATABASE),
    ),
    Verb(
        "list",
        "See what happened",
        "cli.show:list_sagas",
        "List sagas, newest first.",
        example="list --status failed --since 2d",
        needs=(*SERVER, DATABASE),
    ),
    Verb(
        "integrations",
        "See what happened",
        "cli.integration_lists:app",
        "Find integrations: `integrations list` searches and filters, `integrations show` has one.",
        more="By the beginnings of the words of a clinic's name, by a phone number in any form, or "
        "by a part of an id.",
    ),
    Verb(
        "events",
        "See what happened",
        "cli.events:app",
        "Tell the whole history of one saga, event by event; `events republish` tells all again.",
        more="With --json every line is a CloudEvent, as on the stream evosaga:events.",
    ),
    Verb(
        "letters",
        "See what happened",
        "cli.dead_letters:letters",
        "Show dead letters: commands that could not be processed, and why; remove or resend them.",
        more="They lie on the stream evosaga:commands:dead, with every byte that was sent (--json "
        "shows it), until they are removed or sent again. What a code means: /ui/runbook on the "
        "dashboard.",
        example="letters --limit 10",
        needs=(*SERVER, *_STORES),
    ),
    Verb(
        "completion",
        "See what happened",
        "cli.completion:completion",
        "Print a script that completes verbs and options in bash, zsh or fish.",
        more='In ~/.bashrc, or in ~/.zshrc after compinit: eval "$(evosaga completion bash)", with '
        "zsh for zsh. For fish: evosaga completion fish > ~/.config/fish/completions/evosaga.fish",
        example="completion bash",
    ),
)


def function_of(name: str) -> Callable[..., int]:
    """Import what does that verb."""
    from importlib import import_module

    module, _, function = next(verb.work for verb in VERBS if verb.name == name).partition(":")
    work: Callable[..., int] = getattr(import_module(f"evosaga.orchestrator.{module}"), function)
    return work
