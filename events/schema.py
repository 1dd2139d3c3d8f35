"""The tables, for reading code and for queries; the migrations create them.

``evosaga.saga_events`` is inbox, outbox, checkpoint and lock in one. ``evosaga.sagas`` is a
projection of it, written in the same transaction. Not in the log are only ``owner`` and ``next_at``
while a saga is being taken over, since who happens to run a saga is no part of its history, and
that one which is held is held again (``held_claim``, ``holds``, ``doubted_at``, and what it says).
SQL is kept to what Postgres 15 knows. What a domain reads of the engine are two views beside them,
``evosaga.open_sagas`` and ``evosaga.saga_starts`` (sequence 0), of revision 0009.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from evosaga.events.statuses import ACTIVE_STATUSES, OPEN_STATUSES

WAITING: Final = f"{OPEN_STATUSES} AND behind IS NOT NULL"
"""Behind another saga, and no two behind the same: those that wait form a queue."""

metadata = MetaData()


def _timestamp(name: str, *, nullable: bool = False) -> Column[object]:
    default = None if nullable else func.now()
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default)


saga_events = Table(
    "saga_events",
    metadata,
    Column("saga_id", Uuid, primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("data", JSONB, nullable=False),
    _timestamp("recorded_at"),
    Column("correlation_id", Text, nullable=False),
    Column("causation_id", Text),
    schema="evosaga",
)

sagas = Table(
    "sagas",
    metadata,
    Column("saga_id", Uuid, primary_key=True),
    Column("saga", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("business_key", Text, nullable=False),
    Column("organization_id", Uuid),
    Column("instance_name", Text),
    Column("command_id", Text, nullable=False),
    Column("command_hash", Text, nullable=False),
    Column("step", Text),
    Column("direction", Text),
    Column("attempt", Integer),
    Column("code", Text),
    Column("message", Text),
    Column("existing_instance", Text),
    Column("correlation_id", Text, nullable=False),
    Column("causation_id", Text),
    Column("next_sequence", Integer, nullable=False),
    _timestamp("next_at", nullable=True),
    Column("owner", Text),
    _timestamp("created_at"),
    _timestamp("updated_at"),
    Column("behind", Uuid),
    Column("held_claim", Integer),
    Column("holds", Integer),
    _timestamp("doubted_at", nullable=True),
    _timestamp("scheduled_at", nullable=True),
    _timestamp("due_at", nullable=True),
    _timestamp("waits_since", nullable=True),
    CheckConstraint(
        "status IN ('running','compensating','completed','compensated','failed','rejected')",
        name="sagas_status",
    ),
    schema="evosaga",
)
Index(
    "one_open_saga_a_business_key",
    sagas.c.business_key,
    unique=True,
    postgresql_where=text(OPEN_STATUSES),
)
Index(
    "one_open_saga_an_instance",
    sagas.c.instance_name,
    unique=True,
    postgresql_where=text(f"{OPEN_STATUSES} AND instance_name IS NOT NULL AND behind IS NULL"),
)
Index("one_saga_behind_another", sagas.c.behind, unique=True, postgresql_where=text(WAITING))
Index("sagas_waiting_by_organization", sagas.c.organization_id, postgresql_where=text(WAITING))
Index("sagas_waiting_by_instance", sagas.c.instance_name, postgresql_where=text(WAITING))
Index("sagas_owned", sagas.c.owner, postgresql_where=text(ACTIVE_STATUSES))
# The two columns are set by a trigger while no worker drives the saga, and only then: a step that
# changed an indexed column would have to touch every index.
Index("sagas_due", sagas.c.due_at, postgresql_where=text("due_at IS NOT NULL"))
Index("sagas_waiting_since", sagas.c.waits_since, postgresql_where=text("waits_since IS NOT NULL"))
Index("sagas_newest", sagas.c.created_at.desc(), sagas.c.saga_id.desc())
Index("sagas_by_status", sagas.c.status, sagas.c.created_at.desc(), sagas.c.saga_id.desc())
Index(
    "sagas_by_organization",
    sagas.c.organization_id,
    sagas.c.created_at.desc(),
    sagas.c.saga_id.desc(),
)
# Most ids are UUIDs from the stream, which are the saga's own and need no index.
Index(
    "sagas_by_command",
    sagas.c.command_id,
    postgresql_where=text("command_id <> saga_id::text"),
)
Index("sagas_by_instance", sagas.c.instance_name, sagas.c.created_at.desc(), sagas.c.saga_id.desc())

workers = Table(
    "workers",
    metadata,
    Column("worker_id", Text, primary_key=True),
    _timestamp("started_at"),
    _timestamp("lease_until"),
    Column("knows", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("lease_seconds", Double),
    Column("features", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    schema="evosaga",
)

refused = Table(
    "refused",
    metadata,
    Column("saga_id", Uuid, primary_key=True),
    Column("command_hash", Text, nullable=False),
    _timestamp("archived_at"),
    schema="evosaga",
)

relay = Table(
    "relay",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("leader", Text),
    _timestamp("lease_until", nullable=True),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    _timestamp("went_back_at", nullable=True),
    Column("went_back", JSONB),
    Column("term", BigInteger, nullable=False, server_default=text("0")),
    schema="evosaga",
)

appends = Table(
    "appends",
    metadata,
    Column("log", Text, primary_key=True),
    Column("parallel", Boolean, nullable=False, server_default=text("false")),
    schema="evosaga",
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("integration_id", Uuid),
    Column("instance_name", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("state", Text),
    Column("reason", Integer),
    Column("told_at", DateTime, nullable=False),
    _timestamp("received_at"),
    _timestamp("due_at"),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    _timestamp("applied_at", nullable=True),
    schema="evosaga",
)
Index("webhooks_due", webhooks.c.due_at, postgresql_where=text("applied_at IS NULL"))
Index("webhooks_by_age", webhooks.c.received_at)

notices = Table(
    "notices",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("integration_id", Uuid, nullable=False),
    Column("organization_id", Uuid, nullable=False),
    Column("instance_name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", JSONB, nullable=False),
    _timestamp("recorded_at"),
    _timestamp("published_at", nullable=True),
    schema="evosaga",
)
Index("notices_unpublished", notices.c.id, postgresql_where=text("published_at IS NULL"))
Index("notices_by_integration", notices.c.integration_id, notices.c.id)

ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("session", LargeBinary, primary_key=True),
    Column("until", DateTime(timezone=True), nullable=False),
    schema="evosaga",
)

leaders = Table(
    "leaders",
    metadata,
    Column("task", Text, primary_key=True),
    Column("leader", Text),
    _timestamp("lease_until", nullable=True),
    schema="evosaga",
)

sightings = Table(
    "sightings",
    metadata,
    Column("what", Text, primary_key=True),
    Column("instance_name", Text, primary_key=True),
    Column("organization_id", Uuid),
    _timestamp("first_seen"),
    _timestamp("last_seen"),
    Column("looks", Integer, nullable=False, server_default=text("1")),
    Column("repairs", Integer, nullable=False, server_default=text("0")),
    _timestamp("repaired_at", nullable=True),
    Column("servers", ARRAY(Text)),
    schema="evosaga",
)

connections = Table(
    "connections",
    metadata,
    Column("integration_id", Uuid, primary_key=True),
    Column("state", Text, nullable=False),
    _timestamp("since"),
    Column("reason", Integer),
    _timestamp("checked_at", nullable=True),
    Column("looks", Integer, nullable=False, server_default=text("1")),
    _timestamp("connected_at", nullable=True),
    Column("reconnects", Integer, nullable=False, server_default=text("0")),
    _timestamp("next_reconnect_at", nullable=True),
    _timestamp("alerted_at", nullable=True),
    schema="evosaga",
)

Index("connections_alerted", connections.c.state, postgresql_where=text("alerted_at IS NOT NULL"))

chores = Table(
    "chores",
    metadata,
    Column("name", Text, primary_key=True),
    Column("leader", Text),
    _timestamp("lease_until", nullable=True),
    _timestamp("next_at"),
    _timestamp("last_run", nullable=True),
    Column("last_result", JSONB),
    schema="evosaga",
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("key", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("reason", Text),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("cure", Text, nullable=False, server_default=""),
    Column("count", BigInteger, nullable=False, server_default=text("1")),
    Column("data", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("of_process", Boolean, nullable=False, server_default=text("false")),
    _timestamp("opened_at"),
    _timestamp("seen_at"),
    Column("fires_at", DateTime(timezone=True), nullable=False),
    _timestamp("announced_at", nullable=True),
    Column("announced_count", BigInteger),
    _timestamp("resolved_at", nullable=True),
    _timestamp("resolution_announced_at", nullable=True),
    schema="evosaga",
)
Index(
    "one_open_alert_a_key", alerts.c.key, unique=True, postgresql_where=text("resolved_at IS NULL")
)
Index("alerts_unannounced", alerts.c.id, postgresql_where=text("announced_at IS NULL"))
Index(
    "alerts_unannounced_resolutions",
    alerts.c.id,
    postgresql_where=text(
        "resolved_at IS NOT NULL AND announced_at IS NOT NULL AND resolution_announced_at IS NULL"
    ),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("receiver", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("alert_id", BigInteger),
    _timestamp("created_at"),
    _timestamp("next_at"),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("error", Text),
    _timestamp("delivered_at", nullable=True),
    _timestamp("gave_up_at", nullable=True),
    schema="evosaga",
)
Index("one_delivery_a_message", deliveries.c.receiver, deliveries.c.message_id, unique=True)
Index(
    "deliveries_due",
    deliveries.c.receiver,
    deliveries.c.next_at,
    postgresql_where=text("delivered_at IS NULL AND gave_up_at IS NULL"),
)

receivers = Table(
    "receivers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_event", Text, nullable=False),
    _timestamp("delivered_at", nullable=True),
    _timestamp("updated_at"),
    schema="evosaga",
)

integrations = Table(
    "integrations",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=func.gen_random_uuid()),
    Column("organization_id", Uuid, nullable=False),
    Column("type", Text, nullable=False, server_default="whatsapp"),
    Column("provider", Text, nullable=False, server_default="evolution"),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("config", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("webhook_token", Text),
    Column("whatsapp_number", Text),
    _timestamp("created_at"),
    _timestamp("updated_at"),
    schema="healthcare",
    comment="made by evosaga",
)
Index(
    "one_enabled_integration_an_organization",
    integrations.c.organization_id,
    integrations.c.type,
    integrations.c.provider,
    unique=True,
    postgresql_where=text("type = 'whatsapp' AND provider = 'evolution' AND enabled"),
)
Index("integrations_by_instance", text("(config ->> 'instance_name')"), _table=integrations)
# The indexes of searches and of sorted pages are in ``migrations/search_indexes.py`` alone.
