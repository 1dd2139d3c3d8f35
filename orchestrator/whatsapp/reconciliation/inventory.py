"""Evolution's lists, one a server, merged into one inventory.

The servers are asked at the same time. One that gives no list that can be believed does not hold up
the others: nothing is concluded about what is on it. Tokens stay here.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Row
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.models import InstanceList, ListedInstance
from evosaga.sagas.whatsapp.ownership import BIRTHMARK, fingerprint

_AT_ONCE: Final = 1.0
NOT_CONFIGURED: Final = "it is not among this process's EVOSAGA_EVOLUTION_SERVERS"


class ObservationFailed(Exception):
    """One of the stores gives no answer that can be believed; nothing was concluded from it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The instances of all servers by name, and their tokens.

    ``elsewhere``: names that another server has, too. ``unseen``: the servers of which nothing can
    be said, and why.
    """

    instances: Mapping[str, Instance]
    tokens: Mapping[str, str]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OneList:
    """What one server lists, or what is kept of that."""

    instances: dict[str, Instance]
    tokens: dict[str, str] = field(repr=False)

    def put(self, instance: Instance, token: str) -> None:
        """One more."""
        self.instances[instance.name], self.tokens[instance.name] = instance, token


Lists = Mapping[str, OneList | str]
"""By server; a text is the reason why there is no list."""


def refuse_blindness(servers: Mapping[str, Any], unseen: Mapping[str, str]) -> None:
    """Raises ``ObservationFailed`` when no server at all can be looked at."""
    if not servers.keys() <= unseen.keys():
        return
    if len(servers) == 1:
        raise ObservationFailed(unseen[next(iter(servers))])
    raise ObservationFailed("; ".join(f"{name}: {unseen[name]}" for name in servers))


def may_come_back(unseen: Mapping[str, str]) -> frozenset[str]:
    """Those that may be seen again soon, so that what was known of them should be kept."""
    return frozenset(name for name, why in unseen.items() if why != NOT_CONFIGURED)


def unreachable(unseen: Mapping[str, str]) -> str | None:
    """The servers that were not looked at, for people; None when there is none."""
    return "; ".join(f"{name}: {why}" for name, why in sorted(unseen.items())) or None


async def instances_on(server: EvolutionApi) -> InstanceList | str:
    """Everything that a server lists; a text is the reason why that can't be said."""
    began = time.monotonic()
    answer = await server.instances()
    if answer.status == 0 and answer.tried and time.monotonic() - began < _AT_ONCE:
        answer = await server.instances()  # a connection that was kept open was dead
    if answer.status == 0:
        where, cure = httpx.URL(server.url).netloc.decode(), "is it up, and is its URL right?"
        return f"Evolution does not answer at {where} ({answer.told}): {cure}"
    if answer.status != 200 or answer.instances is None:
        return f"Evolution does not give its list: {answer.told}"
    found = answer.instances
    if found.unreadable:
        # Any of them may be the one that some row names, so nothing can be said to be missing.
        of = len(found)
        return f"{found.unreadable} of {of} elements of Evolution's list have no readable name"
    return found


def merge(lists: Lists, rows: Sequence[Row]) -> Listing:
    """One instance a name: that on the server which the name's row says, else the first found.

    What a row means is on its own server or nowhere, whatever has the name on another one.
    """
    home: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: not row.enabled):
        home.setdefault(row.instance_name, row.server)
    unseen = {name: told for name, told in lists.items() if isinstance(told, str)}
    unseen |= {
        row.server: NOT_CONFIGURED for row in rows if row.enabled and row.server not in lists
    }
    instances: dict[str, Instance] = {}
    tokens: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    for server, told in lists.items():
        if isinstance(told, str):
            continue
        for name, instance in told.instances.items():
            if home.setdefault(name, server) == server:
                instances[name], tokens[name] = instance, told.tokens[name]
            else:
                elsewhere[name] = server
    return Listing(instances, tokens, elsewhere, unseen)


def instance_of(one: ListedInstance, server: str) -> Instance:
    return Instance(
        name=one.name,
        status=one.status or "close",
        token_hash=fingerprint(one.token or ""),
        passive=one.channel not in ("WHATSAPP-BAILEYS", None),
        phone=one.phone,
        linked=one.linked,
        hidden=one.token is None,
        like_ours=BIRTHMARK.fullmatch(one.token or "") is not None,
        reason=one.reason,
        closed_at=one.closed_at,
        server=server,
        settings=one.has_settings,
    )
