"""Which line of the arbitration table applies to a command, and the refusal's sentence. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from evosaga.sagas.definition import Admission, Refusal
from evosaga.sagas.outcome import FollowUp
from evosaga.sagas.whatsapp.admission_facts import (
    CREATE_SAGA,
    DELETE_SAGA,
    Found,
    FoundIndex,
    Left,
    OpenSaga,
    Row,
    facts_of,
    facts_of_unnamed,
)
from evosaga.sagas.whatsapp.arbitration import (
    LONGEST_QUEUE,
    RULES,
    Existing,
    Incoming,
    Rule,
    business_key,
)
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER


@dataclass(frozen=True, slots=True)
class Policy:
    """What an admission takes from the settings."""

    key_id: str
    webhook_hosts: frozenset[str] = frozenset()
    deadline_seconds: float | None = None
    servers: frozenset[str] = frozenset({DEFAULT_SERVER})
    """The Evolution servers that an instance may be made on."""


def arbitrate(
    found: Found, commands: Sequence[tuple[UUID, Any]], policy: Policy
) -> list[Admission | Refusal]:
    """What becomes of each command, in order; the later ones see what the earlier ones start."""
    # The query leaves them out to save work; that no saga blocks itself is a rule.
    mine = {saga_id for saga_id, _ in commands}
    sight = FoundIndex(found, (saga for saga in found.sagas if saga.saga_id not in mine))
    verdicts: list[Admission | Refusal] = []
    for saga_id, data in commands:
        if data.asks == "create":
            verdict = _admit_create(sight, saga_id, data, policy)
        else:
            verdict = _admit_delete(sight, saga_id, data)
        verdicts.append(verdict)
        if isinstance(verdict, Admission):
            sight.add(_begun(saga_id, data, verdict))
    return verdicts


def _admit_create(
    sight: FoundIndex, saga_id: UUID, data: Any, policy: Policy
) -> Admission | Refusal:
    organization: UUID = data.organization_id
    key = business_key(organization)
    # Derived from the saga id unless given: such a name is never used twice.
    name: str = data.instance_name or f"wa-{saga_id}"
    if data.webhook_url and urlsplit(data.webhook_url).hostname not in policy.webhook_hosts:
        message = "webhook_url names a host that EVOSAGA_WEBHOOK_HOSTS does not list"
        return Refusal("webhook_host", message, key, organization, name)
    server: str = data.server or DEFAULT_SERVER
    if server not in policy.servers:
        message = f"EVOSAGA_EVOLUTION_SERVERS has no Evolution server named {server}"
        return Refusal("unknown_server", message, key, organization, name)
    row = sight.in_use.get(organization)
    there, culprit = _situation(sight.by_key.get(key, ()), row)
    rule = RULES[there, Incoming.CREATE]
    if rule.verb == "refuse":
        existing = culprit.instance_name if culprit else row.instance_name if row else None
        return _refusal(rule, key, organization, name, culprit, existing)
    if (left := sight.phones.get(organization)) is not None:
        existing = left.instance_name
        return Refusal("integration_exists", _left(left), key, organization, name, existing)
    rows = sight.named.get(name)
    there, culprit = _situation(sight.by_name.get(name, ()), rows[0] if rows else None)
    rule = RULES[there, Incoming.NAMESAKE]
    if rule.verb == "refuse":
        return _refusal(rule, key, organization, name, None, name if culprit else None)
    return Admission(
        key,
        organization,
        name,
        {
            "instance_name": name,
            "created_by": str(saga_id),
            "key_id": policy.key_id,
            "server": server,  # pinned: no change of settings moves what has begun
        },
        deadline_seconds=policy.deadline_seconds,
    )


def _admit_delete(sight: FoundIndex, saga_id: UUID, data: Any) -> Admission | Refusal:
    name: str = data.instance_name
    facts = facts_of(sight, name) or facts_of_unnamed(sight.left.get(name), saga_id)
    # An integration of another organization looks exactly like none.
    wanted = str(data.organization_id) if data.organization_id else None
    if facts is None or wanted not in (None, facts["organization_id"]):
        rule = RULES[Existing.NOTHING, Incoming.DELETE]
        key = f"whatsapp/evolution/instance/{name}"
        return _refusal(rule, key, data.organization_id, name, None, None)
    # A row of older code may have no organization; then its name is all there is to hold.
    organization = UUID(facts["organization_id"]) if facts["organization_id"] else None
    key = business_key(organization) if organization else f"whatsapp/evolution/instance/{name}"
    queue = list(sight.by_key.get(key, ()))
    queue += [saga for saga in sight.by_name.get(name, ()) if saga.wants != key]
    there, ahead = _situation(queue, sight.named.get(name, [None])[0])
    if "forgotten" in facts and there is Existing.NOTHING:
        there = Existing.INTEGRATION
    if ahead is not None and sum(s.behind is not None for s in queue) >= LONGEST_QUEUE:
        there = Existing.QUEUE
    rule = RULES[there, Incoming.DELETE]
    if rule.verb == "refuse":
        return _refusal(rule, key, organization, name, ahead, name)
    if ahead is None:
        return Admission(key, organization, name, facts)
    stop = rule.cancel and ahead.instance_name == name
    return Admission(
        f"{key}/behind/{saga_id}",
        organization,
        name,
        facts | {"behind": str(ahead.saga_id)},
        behind=ahead.saga_id,
        follow_up=_cancel(ahead.saga_id, saga_id) if stop else None,
    )


def _situation(queue: Sequence[OpenSaga], row: Row | None) -> tuple[Existing, OpenSaga | None]:
    """Which line of the table applies, and the open saga that it speaks of."""
    if not queue:
        return (Existing.INTEGRATION if row else Existing.NOTHING), None
    followed = {saga.behind for saga in queue}
    last = next((s for s in reversed(queue) if s.saga_id not in followed), queue[-1])
    culprit = next((saga for saga in queue if saga.status == "failed"), last)
    parked = culprit.status == "failed"
    match culprit.saga:
        case "create-integration" if culprit.status == "compensating":
            return Existing.CREATE_UNDONE, culprit
        case "create-integration":
            return Existing.CREATE_PARKED if parked else Existing.CREATE, culprit
        case "delete-integration":
            return Existing.DELETE_PARKED if parked else Existing.DELETE, culprit
    return Existing.OTHER_PARKED if parked else Existing.OTHER, culprit


def _left(left: Left) -> str:
    return (
        f"the instance {left.instance_name} of this organization is connected on Evolution, though "
        "no row names it: delete it first, or let a row name it "
        f"(evosaga reconcile --organization-id {left.organization_id})"
    )


def _cancel(ahead: UUID, saga_id: UUID) -> FollowUp:
    """It may come too late, or after the end: then what was made is simply deleted."""
    reason = f"what it makes is to be deleted, by saga {saga_id}"
    return FollowUp("saga.cancel", {"saga_id": str(ahead), "reason": reason, "if_possible": True})


def _begun(saga_id: UUID, data: Any, verdict: Admission) -> OpenSaga:
    """A saga that an earlier command of the same batch starts, as the later ones find it."""
    create = data.asks == "create"
    return OpenSaga(
        saga_id,
        CREATE_SAGA if create else DELETE_SAGA,
        "running",
        verdict.business_key,
        verdict.organization_id,
        verdict.instance_name,
        behind=verdict.behind,
        clinic_id=str(data.clinic_id) if create else None,
        facts=verdict.facts,
    )


def _refusal(
    rule: Rule,
    key: str,
    organization_id: UUID | None,
    name: str,
    culprit: OpenSaga | None,
    existing: str | None,
) -> Refusal:
    said = rule.sentence.format(
        name=name,
        saga=culprit.saga_id if culprit else "",
        kind=culprit.saga if culprit else "",
        step=(culprit.step if culprit else None) or "its first",
    )
    return Refusal(rule.code, said, key, organization_id, name, existing)
