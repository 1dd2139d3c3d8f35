"""The integrations of which row and instance agree, packed: 18 bytes each.

A comparison of a million cannot keep what it has seen of each. Of those that agree it is enough to
know how their instance was listed, should their organization turn out to have another one: the
token follows from the row's id and the secret key, and name and number are the row's.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Instance, Row
from evosaga.sagas.whatsapp.ownership import KeyRing, fingerprint

_SIZE: Final = 18
_STATUSES: Final = ("open", "connecting", "close")
_PASSIVE, _LINKED, _PHONE, _EXPECTED, _THERE = 4, 8, 16, 32, 64


class Agreed:
    """Those of one server, put in by ascending id."""

    __slots__ = ("_keys", "_packed", "expected", "there")

    def __init__(self) -> None:
        self._packed = bytearray()
        self._keys: list[str] = []
        self.expected = 0
        """How many of them should have an instance."""
        self.there = 0
        """How many have one."""

    def __len__(self) -> int:
        return len(self._packed) // _SIZE

    def put(self, row: Row, instance: Instance | None, *, expected: bool) -> None:
        """The next one; ``fits`` says whether it can be."""
        flags, key = _EXPECTED * expected, 0
        if instance is not None:
            flags |= _STATUSES.index(instance.status) | _THERE
            flags |= _PASSIVE * instance.passive | _LINKED * instance.linked
            flags |= _PHONE * (instance.phone is not None)
            assert instance.key_id is not None
            if instance.key_id not in self._keys:
                self._keys.append(instance.key_id)
            key = self._keys.index(instance.key_id)
        self._packed += row.id.bytes + bytes((flags, key))
        self.expected += expected
        self.there += instance is not None

    def take(self, row: Row, keyring: KeyRing) -> Instance | None:
        """The row's instance as it was listed; None also when the row is not among them.

        What is taken is counted no more: it is looked at like any other from there on.
        """
        at = self._find(row.id)
        if at is None:
            return None
        flags, key = self._packed[at + 16], self._packed[at + 17]
        self.expected -= bool(flags & _EXPECTED)
        self.there -= bool(flags & _THERE)
        self._packed[at + 16] = flags & ~_EXPECTED & ~_THERE
        return self._instance(row, flags, key, keyring) if flags & _THERE else None

    def pages(self, size: int) -> Iterator[list[UUID]]:
        """The ids of those with an instance that were not taken, so many at a time."""
        packed, step = self._packed, size * _SIZE
        for begin in range(0, len(packed), step):
            page = range(begin, min(begin + step, len(packed)), _SIZE)
            found = [at for at in page if packed[at + 16] & _THERE]
            yield [UUID(bytes=bytes(packed[at : at + 16])) for at in found]

    def instances(self, rows: Sequence[Row], keyring: KeyRing) -> dict[str, Instance]:
        """By name, the instances of these rows as far as they are among them."""
        found: dict[str, Instance] = {}
        for row in rows:
            at = self._find(row.id)
            if at is not None and (flags := self._packed[at + 16]) & _THERE:
                one = self._instance(row, flags, self._packed[at + 17], keyring)
                found[row.instance_name] = one
        return found

    def _instance(self, row: Row, flags: int, key: int, keyring: KeyRing) -> Instance:
        token = keyring.instance_token(row.id, self._keys[key])
        return Instance(
            name=row.instance_name,
            status=_STATUSES[flags & 3],
            token_hash=fingerprint(token),
            passive=bool(flags & _PASSIVE),
            phone=digits(row.number) if flags & _PHONE else None,
            linked=bool(flags & _LINKED),
            like_ours=True,
            made_by=row.id,
            key_id=self._keys[key],
            server=row.server,
        )

    def _find(self, id_: UUID) -> int | None:
        packed = self._packed
        places = range(0, len(packed), _SIZE)
        found = bisect_left(places, id_.bytes, key=lambda at: bytes(packed[at : at + 16]))
        at = found * _SIZE
        return at if packed[at : at + 16] == id_.bytes else None


def fits(row: Row, instance: Instance | None) -> bool:
    """Whether the instance can be told from the row and a few flags."""
    return instance is None or (
        instance.made_by == row.id
        and instance.key_id is not None
        and instance.status in _STATUSES
        and instance.settings
        and instance.phone in (None, digits(row.number))
    )


def digits(number: str | None) -> str | None:
    """A number as WhatsApp writes it."""
    return "".join(filter(str.isdigit, number or "")) or None
