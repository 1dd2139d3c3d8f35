"""Asking Evolution's memory about single instances, each with the instance's own token."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.reconciliation.drift import implausibility
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Memory, Snapshot
from evosaga.sagas.context import World
from evosaga.sagas.whatsapp.evolution.answers import Presence
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.legacy_instances import NO_TOKEN
from evosaga.sagas.whatsapp.ownership import UnknownKey

_AT_ONCE: Final = 16
_PAGE: Final = 64
_SIGHTS: Final[dict[Presence, Memory]] = {
    Presence.ABSENT: "absent",
    Presence.HALF: "half",
    Presence.FOREIGN: "foreign",
}


async def ask(
    pool: Pool,
    world: World,
    snapshot: Snapshot,
    tokens: Mapping[str, str],
    names: Sequence[str],
) -> dict[str, Memory]:
    """What memory says of these, a few at a time on each server.

    ``names`` that a list lacks should come first: when many are missing and the first of them
    turn out to be there, the list is not to be believed, and the rest is not asked.
    """
    own = await _own_tokens(pool, world, snapshot, [n for n in names if not tokens.get(n)])
    rows = snapshot.named()
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(snapshot.server_of(name, rows), []).append(name)
    found = await asyncio.gather(
        *(
            _ask_server(world.server(server), server, snapshot, tokens, own, group)
            for server, group in groups.items()
        )
    )
    return {name: memory for group in found for name, memory in group.items()}


async def _ask_server(
    evolution: EvolutionApi,
    server: str,
    snapshot: Snapshot,
    tokens: Mapping[str, str],
    own: Mapping[str, str],
    names: Sequence[str],
) -> dict[str, Memory]:
    known: dict[str, Memory] = {}
    hidden = {name for name, instance in snapshot.instances.items() if instance.hidden}
    for page in (names[at : at + _PAGE] for at in range(0, len(names), _PAGE)):
        limit = asyncio.Semaphore(_AT_ONCE)
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
    pool: Pool, world: World, snapshot: Snapshot, names: Sequence[str]
) -> dict[str, str]:
    """The birthmarks that instances should carry which the list does not show."""
    wanted = set(names)
    rows = [row for row in snapshot.rows if row.born and row.instance_name in wanted]
    ids: dict[UUID, str] = {row.id: row.instance_name for row in rows}
    found: dict[str, str] = {}
    for row in await pool.fetch(_KEY_IDS, list(ids)) if ids else ():
        try:
            token = world.keys.instance_token(row["saga_id"], row["key_id"] or "")
        except UnknownKey:
            continue
        found[ids[row["saga_id"]]] = token
    return found


_KEY_IDS: Final = """
SELECT saga_id, data -> 'facts' ->> 'key_id' AS key_id FROM evosaga.saga_events
WHERE saga_id = ANY($1) AND sequence = 0
"""
