"""Asking Evolution's memory about single instances, each with the instance's own token.

Second stage of a reconcile run: the list lags behind memory, so what looks wrong in it is asked
about by name.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.reconciliation.classify import can_be_sent, classify, names_of
from evosaga.orchestrator.whatsapp.reconciliation.inventory import refuse_blindness
from evosaga.orchestrator.whatsapp.reconciliation.observe import Observation
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import implausibility
from evosaga.orchestrator.whatsapp.reconciliation.repair_commands import command_for
from evosaga.orchestrator.whatsapp.reconciliation.sift import ASKED
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Memory, Snapshot
from evosaga.sagas.whatsapp.evolution.answers import Presence
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.legacy_instances import NO_TOKEN
from evosaga.sagas.whatsapp.evolution.pacing import Pace
from evosaga.sagas.whatsapp.ownership import UnknownKey
from evosaga.sagas.whatsapp.services import Services

_AT_ONCE: Final = 16
_PAGE: Final = 64
_SIGHTS: Final[dict[Presence, Memory]] = {
    Presence.ABSENT: "absent",
    Presence.HALF: "half",
    Presence.FOREIGN: "foreign",
}
_LOST: Final[tuple[Memory, ...]] = ("absent", "half")
_LOADING: Final = (0.5, 0.75, 1.0, 1.0)
"""Seconds to wait before each further question to what may just be loading."""


async def probe(pool: Pool, services: Services, seen: Observation, *, everything: bool) -> Snapshot:
    """The snapshot with memory's answers about what looks wrong in it.

    ``everything``: also about what looks well. With ``Keep`` all instances of that organization are
    asked about. Raises ``ObservationFailed`` when no server can be believed.
    """
    snapshot, keep = seen.snapshot, seen.snapshot.keep
    # Thousands of names take a while, and a worker's other tasks should not notice.
    names = await asyncio.to_thread(needs_probe, snapshot)
    well: list[str] = []
    if keep is not None:  # a few, so all of them are asked
        every = names_of(snapshot, keep.organization_id)
        names = sorted({*names, *filter(can_be_sent, every)})
    elif everything:
        well = await asyncio.to_thread(_well_looking, snapshot, frozenset(names))
    asked = snapshot.asked(await ask(pool, services, snapshot, seen.tokens, names))
    asked = asked.asked(await _halves(pool, services, asked, seen.tokens, well))
    return without_implausible(services, asked)


def needs_probe(snapshot: Snapshot) -> list[str]:
    """The names whose drift a command would mend, those that the list lacks first."""
    found = classify(snapshot)
    names = [
        name
        for name, code in found.verdicts.items()
        if can_be_sent(name) and command_for(code, found.names[name], found.names) is not None
    ]
    return sorted(names, key=lambda name: (name in snapshot.instances, name))


async def _halves(
    pool: Pool,
    services: Services,
    snapshot: Snapshot,
    tokens: Mapping[str, str],
    names: Sequence[str],
) -> dict[str, Memory]:
    """Of those that look well, what is lost to memory: how they are connected is for the health
    check to follow.

    A server that has just started has its rows and loads their instances one by one. So they are
    asked for again for a while, and where one comes back, nothing is concluded of the others.
    """
    left = await ask(pool, services, snapshot, tokens, names) if names else {}
    loading: set[str] = set()
    for pause in (0.0, *_LOADING):
        await asyncio.sleep(pause)
        if pause:
            again = await ask(pool, services, snapshot, tokens, list(left))
            back = {name for name in left if again.get(name) not in _LOST}
            loading |= {snapshot.instances[name].server for name in back}
        left = {
            name: told
            for name, told in left.items()
            if told in _LOST and snapshot.instances[name].server not in loading
        }
        if not left:
            break
    return left


def _well_looking(snapshot: Snapshot, but: frozenset[str]) -> list[str]:
    """Those that may be half deleted, which the list does not show: not connected ones first."""
    rows = [
        row
        for name, row in snapshot.named().items()
        if row.enabled
        and name in snapshot.instances
        and name not in but
        and name not in snapshot.busy_names
        and row.organization_id not in snapshot.busy_organizations
        and can_be_sent(name)
    ]
    rows.sort(key=lambda row: row.status == "connected")
    return [row.instance_name for row in rows[:ASKED]]


def without_implausible(services: Services, snapshot: Snapshot) -> Snapshot:
    """The same without the servers whose lists are not to be believed. Raises
    ``ObservationFailed``."""
    doubts = {
        name: reason for name in services.servers if (reason := implausibility(snapshot, name))
    }
    refuse_blindness(services.servers, {**snapshot.unseen, **doubts})
    return snapshot.without(doubts)


async def ask(
    pool: Pool,
    services: Services,
    snapshot: Snapshot,
    tokens: Mapping[str, str],
    names: Sequence[str],
) -> dict[str, Memory]:
    """What memory says of these, a few at a time on each server.

    ``names`` that a list lacks should come first: when many are missing and the first of them
    turn out to be there, the list is not to be believed, and the rest is not asked.
    """
    own = await _own_tokens(pool, services, snapshot, [n for n in names if not tokens.get(n)])
    rows = snapshot.named()
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(snapshot.server_of(name, rows), []).append(name)
    found = await asyncio.gather(
        *(
            _ask_server(services, server, snapshot, tokens, own, group)
            for server, group in groups.items()
        )
    )
    return {name: memory for group in found for name, memory in group.items()}


async def _ask_server(
    services: Services,
    server: str,
    snapshot: Snapshot,
    tokens: Mapping[str, str],
    own: Mapping[str, str],
    names: Sequence[str],
) -> dict[str, Memory]:
    evolution, pace = services.server(server), Pace(services.maintenance_rate)
    known: dict[str, Memory] = {}
    hidden = {name for name, instance in snapshot.instances.items() if instance.hidden}
    for page in (names[at : at + _PAGE] for at in range(0, len(names), _PAGE)):
        limit = asyncio.Semaphore(_AT_ONCE)
        await pace.page(len(page))
        answers = await asyncio.gather(
            *(
                _one(evolution, name, tokens.get(name), own.get(name), name in hidden, limit)
                for name in page
            )
        )
        known |= dict(zip(page, answers, strict=True))
        missing = [name for name in page if name not in snapshot.instances]
        lied = any(known[name] not in ("absent", "half", "foreign") for name in missing)
        if lied and implausibility(snapshot.asked(known), server) is not None:
            break
    return known


async def _one(
    evolution: EvolutionApi,
    name: str,
    token: str | None,
    own: str | None,
    hidden: bool,
    limit: asyncio.Semaphore,
) -> Memory:
    async with limit:
        # Of older code's, whose token is not shown, the global key learns how it is, not whose.
        key = token or own or (None if hidden else NO_TOKEN)
        answer = await evolution.memory(name, key)
        if answer.alien:
            return "unanswered"  # a proxy's 404 is no absence
        match answer.status:
            case 200:
                about = answer.instance
                return about.state or "unanswered" if about and about.said else "half"
            case 404:
                return "absent"
            case 401 if not token and own is not None:
                # Not in the list and refusing our token: a stranger's, or only half of ours.
                seen = await evolution.see(name, own)
                return _SIGHTS.get(seen.sight, "unanswered")
    return "unanswered"


async def _own_tokens(
    pool: Pool, services: Services, snapshot: Snapshot, names: Sequence[str]
) -> dict[str, str]:
    """The birthmarks that instances should carry which the list does not show."""
    wanted = set(names)
    rows = [row for row in snapshot.rows if row.born and row.instance_name in wanted]
    ids: dict[UUID, str] = {row.id: row.instance_name for row in rows}
    found: dict[str, str] = {}
    for row in await pool.fetch(_KEY_IDS, list(ids)) if ids else ():
        try:
            token = services.keys.instance_token(row["saga_id"], row["key_id"] or "")
        except UnknownKey:
            continue
        found[ids[row["saga_id"]]] = token
    return found


_KEY_IDS: Final = """
SELECT saga_id, facts ->> 'key_id' AS key_id FROM evosaga.saga_starts WHERE saga_id = ANY($1)
"""
