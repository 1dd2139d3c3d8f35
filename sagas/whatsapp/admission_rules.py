"""What becomes of creates and deletes, and the sentences of refusals. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from evosaga.sagas import conflicts
from evosaga.sagas.admission import Admission, Candidate, Refusal
from evosaga.sagas.whatsapp.admission_facts import (
    Found,
    FoundIndex,
    Left,
    OpenSaga,
    facts_of,
    facts_of_unnamed,
)
from evosaga.sagas.whatsapp.arbitration import CREATE_SAGA, DELETE_SAGA, business_key
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER


@dataclass(frozen=True, slots=True)
class Policy:
    """What an admission takes from the settings."""

    key_id: str
    webhook_hosts: frozenset[str] = frozenset()
    deadline_seconds: float | None = None
    servers: frozenset[str] = frozenset({DEFAULT_SERVER})
    """The Evolution servers that an instance may be made on."""


_WHOSE: Final = " of this organization"


def arbitrate(
    found: Found, commands: Sequence[Candidate[Any]], policy: Policy
) -> list[Admission | Refusal]:
    """What becomes of each command, in order; the later ones see what the earlier ones start."""
    # The query leaves them out to save work; that no saga blocks itself is a rule.
    mine = {one.saga_id for one in commands}
    sight = FoundIndex(found, (saga for saga in found.sagas if saga.saga_id not in mine))
    verdicts: list[Admission | Refusal] = []
    for one in commands:
        if one.input.asks == "create":
            verdict = _admit_create(sight, one, policy)
        else:
            verdict = _admit_delete(sight, one)
        verdicts.append(verdict)
        if isinstance(verdict, Admission):
            sight.queues.add(_begun(one, verdict))
    return verdicts


def _admit_create(sight: FoundIndex, asked: Candidate[Any], policy: Policy) -> Admission | Refusal:
    saga_id, data = asked.saga_id, asked.input
    organization: UUID = data.organization_id
    key = business_key(organization)
    # Derived from the saga id unless given: such a name is never used twice.
    name: str = data.instance_name or f"wa-{saga_id}"
    server: str = data.server or DEFAULT_SERVER

    about = (key, organization, name)
    if data.webhook_url and urlsplit(data.webhook_url).hostname not in policy.webhook_hosts:
        message = "webhook_url names a host that EVOSAGA_WEBHOOK_HOSTS does not list"
        return Refusal("webhook_host", message, *about)
    if server not in policy.servers:
        message = f"EVOSAGA_EVOLUTION_SERVERS has no Evolution server named {server}"
        return Refusal("unknown_server", message, *about)
    facts = {
        "instance_name": name,
        "created_by": str(saga_id),
        "key_id": policy.key_id,
        "server": server,  # pinned: no change of settings moves what has begun
    }
    wanted = Admission(key, organization, name, facts, deadline_seconds=policy.deadline_seconds)
    verdict = conflicts.weigh(asked.on_conflict, saga_id, wanted, sight.queues.of(key), _WHOSE)
    if isinstance(verdict, Refusal) or verdict.behind is not None:
        return verdict
    if (row := sight.in_use.get(organization)) is not None:
        message = "WhatsApp integration already exists for this organization"
        return Refusal("integration_exists", message, *about, row.instance_name)
    if (left := sight.phones.get(organization)) is not None:
        return Refusal("integration_exists", _left(left), *about, left.instance_name)
    at_work = sight.queues.by_name.get(name)
    if at_work or name in sight.named:
        message = f"another integration uses the instance name {name}"
        return Refusal("name_taken", message, *about, name if at_work else None)
    return verdict


def _admit_delete(sight: FoundIndex, asked: Candidate[Any]) -> Admission | Refusal:
    saga_id, data = asked.saga_id, asked.input
    name: str = data.instance_name
    facts = facts_of(sight, name) or facts_of_unnamed(sight.left.get(name), saga_id)
    # An integration of another organization looks exactly like none.
    wanted = str(data.organization_id) if data.organization_id else None
    if facts is None or wanted not in (None, facts["organization_id"]):
        key = f"whatsapp/evolution/instance/{name}"
        message = f"no integration has the instance {name}"
        return Refusal("not_found", message, key, data.organization_id, name)
    # A row of older code may have no organization; then its name is all there is to hold.
    organization = UUID(facts["organization_id"]) if facts["organization_id"] else None
    key = business_key(organization) if organization else f"whatsapp/evolution/instance/{name}"
    admitted = Admission(key, organization, name, facts)
    return conflicts.weigh(asked.on_conflict, saga_id, admitted, sight.queues.of(key, name), _WHOSE)


def _left(left: Left) -> str:
    return (
        f"the instance {left.instance_name} of this organization is connected on Evolution, though "
        "no row names it: delete it first, or let a row name it "
        f"(evosaga reconcile --organization-id {left.organization_id})"
    )


def _begun(asked: Candidate[Any], verdict: Admission) -> OpenSaga:
    """A saga that an earlier command of the same batch starts, as the later ones find it."""
    create = asked.input.asks == "create"
    return OpenSaga(
        asked.saga_id,
        CREATE_SAGA if create else DELETE_SAGA,
        "running",
        verdict.business_key,
        verdict.organization_id,
        verdict.instance_name,
        behind=verdict.behind,
        clinic_id=str(asked.input.clinic_id) if create else None,
        facts=verdict.facts,
    )
