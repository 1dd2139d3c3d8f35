"""What the code has no place to say of its names: purposes of tables, keys and a few codes."""

from collections.abc import Mapping
from typing import Final

from evosaga.events.relay_position import PROOF, TOLD
from evosaga.orchestrator.maintenance.redis_owner import OWNER
from evosaga.sagas.whatsapp.steps import routing_key

NAME: Final = "{instance_name}"

VARIABLES: Final[Mapping[str, str]] = {
    "database_url": "Postgres 15 or newer, `postgresql://…`; Supabase and PgBouncer in transaction "
    "mode work, and several hosts (`a:5432,b:5432`). `DATABASE_URL` is read too. Without it: the "
    "embedded Postgres",
    "redis_url": "Redis 7.0 or newer or Valkey: `redis://`, `rediss://`, `unix://`. `REDIS_URL` is "
    "read too. Without it: the embedded Valkey",
    "evolution_url": "The Evolution API server called `default`. Without it: the simulated one in "
    "`demo` and `dev`, else refused",
    "evolution_api_key": "The global API key of that server",
    "evolution_servers": 'Further servers by name, as JSON: `{"berlin": {"url": "https://…", '
    '"api_key": "…"}}`',
    "public_url": "The base URL under which Evolution reaches our webhook receiver. Without it: "
    "webhooks are off",
    "secret_key": "Derives ownership and webhook tokens; at least 32 bytes. Several, comma "
    "separated, while one is rotated: the first is for what is new. Generated in `demo` and `dev`, "
    "else required",
    "webhook_hosts": "Hosts that a command's `webhook_url` may name, comma separated. Without it: "
    "`webhook_url` is refused",
    "api_keys": "Who may use HTTP: `name:key` or `name:key:organization_id`, comma separated; a "
    "key has at least 16 characters. Made and printed in `dev`; `serve` and `api` need them",
    "log_format": "`console` or `json`; without it `console` on a terminal, else `json`",
    "log_level": "`debug`, `info`, `warning`, `error`",
    "redis_prefix": "Goes before every key, stream and channel, for two databases on one Redis",
    "reconcile_every": "Seconds between two comparisons of all the stores; 0: off",
    "orphans_every": "Seconds between two looks for instances that no row names; 0: off",
    "health_every": "Seconds between two looks at every integration's connection; 0: off",
    "older_names": "What older code called its instances: patterns with `*` and one of "
    "`{organization_id}`, `{clinic_id}`, comma separated",
    "host": "Where HTTP listens; `--host` goes before. `0.0.0.0` in containers",
    "port": "The port of HTTP; `--port` goes before",
    "alert_url": "Where messages about phones alone are posted, as JSON. Such URLs often are a "
    "secret themselves",
    "alerts_url": "Where [alerts](../alerts.md) of all kinds are posted",
    "alerts_format": "How: `json`, `slack` or `pagerduty`",
    "alerts_secret": "Signs what is sent there, `whsec_…`; without it a key is derived from "
    "`EVOSAGA_SECRET_KEY`",
    "alerts_routing_key": "PagerDuty's; with it `EVOSAGA_ALERTS_URL` is not needed",
    "receivers": "Further [receivers](../alerts.md#receivers) of alerts and of events, by name, as "
    "JSON",
    "runbook_url": "Where alerts and `why` say that the [runbook](../monitoring/runbook.md) is; "
    "the name of a paragraph is put behind `#`. A path is one of the dashboard's",
    "metrics_port": "Where a worker serves [metrics](../alerts.md#metrics), on `EVOSAGA_HOST`; "
    "without it: nowhere",
}

OTHER_VARIABLES: Final[Mapping[str, str]] = {
    "`EVOSAGA_URL`": "for the terminal: the server that verbs speak to over HTTP",
    "`EVOSAGA_API_KEY`": "the API key for it",
    "`EVOSAGA_PROFILE`": "instead of both: the profile that `evosaga login` has kept",
    "`EVOSAGA_STATE_DIR`": "where `demo` and `dev` keep the embedded servers and what they store; "
    "default `~/.local/state/evosaga`, for root `/var/lib/evosaga`",
    "`EVOSAGA_LOCAL`": "which embedded servers: `wheel`, `system` (those on PATH) or `docker`",
    "`FORWARDED_ALLOW_IPS`": "proxies whose `X-Forwarded-For` is believed; `*`: all, even forged",
    "`EVOSAGA_SYNC_POINTS`": "for tests of evosaga itself: where a process is to pause or to die",
}

TABLES: Final[Mapping[str, str]] = {
    "evosaga.alembic_version": "The revision of the schema.",
    "evosaga.alerts": "What is wrong, and what was for 30 days: one open row for each group of "
    "causes.",
    "evosaga.chores": "Scheduled jobs: who runs each, when it is due, and its last result.",
    "evosaga.connections": "How each integration's phone is connected, as the last look found it.",
    "evosaga.deliveries": "Messages to receivers, until each has taken them or they are given up.",
    "evosaga.ended_sessions": "Sessions of the dashboard that were signed out.",
    "evosaga.leaders": "Who does what only one worker may do at a time.",
    "evosaga.notices": "Events of integrations that belong to no saga, kept for a week.",
    "evosaga.open_sagas": "A view: sagas that are running, compensating or failed.",
    "evosaga.receivers": "Receivers of events: how far on the stream each is.",
    "evosaga.refused": "Ids of rejected sagas that are no longer kept, so that they stay taken.",
    "evosaga.appends": "Whether appends to the log commit in parallel, or one after another.",
    "evosaga.relay": "How far the relay has published.",
    "evosaga.saga_events": "The history of every saga. Append-only: triggers refuse UPDATE and "
    "DELETE. This is the truth; the rest is made from it.",
    "evosaga.saga_starts": "A view: with which input and facts each saga began.",
    "evosaga.sagas": "The status of every saga, written in the transaction of its events. "
    "`evosaga rebuild` makes it again from the history.",
    "evosaga.sightings": "Drifts and leftovers that reconciliation has seen.",
    "evosaga.webhooks": "The inbox of webhooks about connections.",
    "evosaga.workers": "The workers: their leases, and which sagas and commands each knows.",
    "healthcare.integrations": "One row for each integration. One enabled row is allowed for an "
    "organization, type and provider.",
}

NOTICES: Final[Mapping[str, str]] = {
    "integration.connected": "A phone was linked, or is connected again.",
    "integration.disconnected": "The connection was lost; `reason` is WhatsApp's code.",
    "integration.qr_updated": "There is a new QR code, or (`available` false) no more.",
    "integration.alert": "An integration has been disconnected for `EVOSAGA_ALERT_AFTER` seconds.",
}

HOLDS: Final[Mapping[str, str]] = {
    "evolution_unreachable": "no connection to the server; nothing was sent",
    "evolution_unavailable": "it answers with errors or not at all, or is not called for a while",
    "evolution_misconfigured": "the key, the URL, the licence or a proxy in front of it is wrong",
    "token_hidden": "Evolution lists the instance without its token, so it can't be recognised",
    "list_unreadable": "Evolution's list can't be read, so it proves no absence",
    "half_there": "an older instance is in Evolution's memory alone",
    "server_unknown": "the saga's Evolution server is not configured here",
    "secret_key_unknown": "the saga began under a secret key that this worker does not have",
}

ELSEWHERE: Final = (
    ("ahead_parked", "rejected", "the saga this one waited for is parked; replay that one first"),
    ("cancelled", "undone", "a cancel was asked for"),
    ("deadline_exceeded", "undone", "the create was not done in `EVOSAGA_CREATE_DEADLINE` seconds"),
    ("evolution_busy", "held", "as many calls are out as it should bear, or it said 429"),
    ("in_progress", "refused", "another saga is at work on the same integration"),
    ("waiting", "waits", "another saga with the same business key comes first"),
    ("lease_lost", "held", "the worker was out of touch for too long, so it did not begin"),
    ("limited", "waits", "for a place at a limit that all workers share"),
    ("not_on_this_worker", "held", "this worker lacks a server or a secret key that it needs"),
    ("worker_lost", "unknown", "the worker of that attempt vanished"),
)
"""Codes that no outcome's class is called with in the source: code, outcome, meaning."""

CODES: Final[Mapping[str, str]] = {
    **HOLDS,
    "blocked": "what the saga would make is there already and is not its own",
    "conflicting_duplicate": "the id was used for another command",
    "deleting": "the integration is being deleted",
    "dependency_unreachable": "something that a step calls is away",
    "expired": "it came after its `expirytime`",
    "half_removed": "Evolution has removed half of the instance; looking again",
    "instance_half_made": "only half of the instance is there",
    "instance_incomplete": "its webhook or its settings are missing",
    "instance_remains": "Evolution did not remove the instance",
    "in_progress": "another saga is at work on it",
    "name_taken": "another integration uses the instance name",
    "not_found": "there is no such integration",
    "integration_exists": "the organization has an integration already",
    "not_replayable": "the saga can't be replayed",
    "unknown_key": "the saga began under another secret key",
    "unknown_server": "no Evolution server of that name is configured",
    "unknown_version": "no living worker has that version of the saga",
    "webhook_host": "the host of `webhook_url` is not in `EVOSAGA_WEBHOOK_HOSTS`",
}


def keys() -> dict[str, str]:
    """The keys in Redis, each with what it holds."""
    return {
        f"`{routing_key.key(NAME)}`": 'the route as JSON: `{"clinic_id","organization_id","name",'
        '"whatsapp_number"}`; an hour',
        f"`{routing_key.filled_key(NAME)}`": "what evosaga wrote there, so that readers can tell",
        f"`evosaga:removed:{NAME}`": "the mark of a removal: the route is not filled again",
        f"`{routing_key.qr_key(NAME)}`": "the current QR code; 60 seconds. A secret",
        f"`{routing_key.qr_limit_key(NAME)}`": "there while Evolution shows no more codes",
        f"`evosaga:qr-time:{NAME}`": "when the code was last asked for",
        f"`evosaga:pairing:{NAME}`": "who asks Evolution for the code just now",
        "`evosaga:told:{digest}`": "messages of webhooks that were told already; half an hour",
        f"`{TOLD}`": "how far events were told",
        f"`{PROOF}`": "what stood last on the stream then, which proves the former",
        "`evosaga:events:told:commands`": "in a cluster: how far follow-up commands were told",
        "`evosaga:commands:told`": "in a cluster: the same, on their own node",
        "`evosaga:limit:{name}:held`, `:queue`, `:about`": "who has a place at a limit, who "
        "waits for one, and how long a place is used",
        f"`{OWNER}`": "whose Redis this is: the database's identifier",
    }
