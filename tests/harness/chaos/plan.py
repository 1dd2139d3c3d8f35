"""What a run will do, drawn from its seed before anything starts: the load, and the faults.

The same seed gives the same plan, command ids included. Two runs of one plan still differ, since
nobody can make two kernels schedule alike; what they must have in common is that every check holds.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.harness.chaos.faults import Strike, draw_faults

STRANGERS: Final = tuple(f"stranger-{n}" for n in range(8))
"""Instances of somebody else that stand on Evolution before the run begins."""
PRIVATE: Final = ("Clínica Canária", "5511987650000")
"""A name and a phone number, to be found in Postgres and in the command alone."""
_CANARY: Final = "poisoned-canary-d41d8cd98f00b204"


@dataclass(frozen=True, slots=True)
class Publish:
    """A command to be published ``at`` so many seconds after the start."""

    at: float
    kind: str
    id: str
    body: bytes
    http: bool = False
    """Through the HTTP API; else onto the stream."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run. ``seconds`` is the length of the part with faults."""

    seed: int
    seconds: float
    workers: int
    version: str
    load: Sequence[Publish]
    faults: Sequence[Strike]
    wanted: int
    """Sagas that its commands ask for, repeated ones not counted."""

    @property
    def mark(self) -> str:
        """Eight hex digits that differ when anything in the plan does."""
        told = [self.seed, self.seconds, self.version]
        told += [[p.at, p.kind, p.body.hex(), p.http] for p in self.load]
        told += [[s.at, s.kind, s.slot, dict(s.how)] for s in self.faults]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def make_plan(
    seed: int,
    *,
    sagas: int,
    seconds: float,
    workers: int,
    version: str,
    modes: Mapping[str, Mapping[str, Any]],
) -> Plan:
    """``modes`` is what the simulated Evolution server can do wrong, as it says itself."""
    load = _Load(Random(f"{seed}/load"), seconds)
    while load.wanted < sagas:
        load.episode()
    faults = draw_faults(
        Random(f"{seed}/faults"),
        seconds=seconds,
        count=max(12, round(sagas * 0.165)),
        workers=workers,
        modes=modes,
        load=load,
        thorough=sagas >= 1000,
    )
    return Plan(
        seed=seed,
        seconds=seconds,
        workers=workers,
        version=version,
        load=sorted(load.publishes, key=lambda p: (p.at, p.id)),
        faults=sorted(faults, key=lambda s: s.at),
        wanted=load.wanted,
    )


@dataclass
class _Load:
    """Organizations that want an integration, or no longer want one, or can't decide."""

    rng: Random
    seconds: float
    publishes: list[Publish] = field(default_factory=list)
    wanted: int = 0
    names: list[tuple[float, str]] = field(default_factory=list)
    """When the instances of derived names are asked for."""

    def episode(self) -> None:
        """One organization, from its create to whatever becomes of it."""
        rng, organization = self.rng, self._uuid()
        at = rng.uniform(0.0, self.seconds * 0.97)
        more: dict[str, Any] = {}
        if rng.random() < 0.03:
            more["instance_name"] = rng.choice(STRANGERS)
        elif rng.random() < 0.03:
            more["instance_name"] = f"chosen-{rng.randrange(6)}"
        id_, name = self.create(at, organization, **more)
        if rng.random() < 0.06:
            self.create(at + rng.uniform(-0.3, 0.6), organization)
        if rng.random() < 0.05:
            self.steer("cancel", at + rng.uniform(0.0, 2.0), id_)
        if rng.random() < 0.03:
            self.steer("replay", at + rng.uniform(1.0, 20.0), id_)
        if rng.random() < 0.02:
            self.delete(at + rng.uniform(0, 5), name, organization_id=self._uuid())
        if rng.random() < 0.02:
            self._conflict(at + rng.uniform(0, 5), id_)
        if rng.random() < 0.62:
            self._farewell(at + rng.choice((0.05, 0.5, 3.0, 15.0)) * rng.uniform(0.5, 1.5), name)
            if rng.random() < 0.2:
                self.create(at + rng.uniform(5.0, 20.0), organization)
        if rng.random() < 0.04:
            self._poison(at)

    def create(self, at: float, organization: str, **more: Any) -> tuple[str, str]:
        """Publish a create; its id and its instance's name."""
        rng, id_ = self.rng, self._uuid()
        data = {
            "organization_id": organization,
            "clinic_id": self._uuid(),
            "name": PRIVATE[0],
            "channel": "WHATSAPP-BAILEYS" if rng.random() < 0.3 else "EVOLUTION",
            **more,
        }
        if rng.random() < 0.2:
            data["number"] = PRIVATE[1]
        self._publish(at, "create", id_, "integration.create", data)
        self.wanted += 1
        if "instance_name" not in more:
            self.names.append((max(0.0, at), f"wa-{id_}"))
        return id_, data.get("instance_name", f"wa-{id_}")

    def delete(self, at: float, name: str, **more: Any) -> str:
        """Publish a delete; its id."""
        id_ = self._uuid()
        self._publish(at, "delete", id_, "integration.delete", {"instance_name": name, **more})
        self.wanted += 1
        return id_

    def steer(self, kind: str, at: float, saga_id: str) -> None:
        """Publish a cancel or a replay."""
        self._publish(at, kind, self._uuid(), f"saga.{kind}", {"saga_id": saga_id})

    def _farewell(self, at: float, name: str) -> None:
        id_ = self.delete(at, name)
        if self.rng.random() < 0.04:
            self.delete(at + self.rng.uniform(0, 0.5), name)
        if self.rng.random() < 0.03:
            self.steer("cancel", at + self.rng.uniform(0.0, 1.0), id_)

    def _publish(self, at: float, kind: str, id_: str, type_: str, data: dict[str, Any]) -> None:
        at = self._within(at)
        body = json.dumps({"id": id_, "type": type_, "data": data}, ensure_ascii=False).encode()
        http = self.rng.random() < 0.2
        self.publishes.append(Publish(at, kind, id_, body, http))
        if self.rng.random() < 0.1:
            again = at + self.rng.choice((0.0, 0.2, 10.0)) * self.rng.random()
            http = http and self.rng.random() < 0.5
            self.publishes.append(Publish(self._within(again), kind, id_, body, http))

    def _conflict(self, at: float, id_: str) -> None:
        """The id of another command, with another body."""
        data = {"instance_name": f"wa-{self._uuid()}"}
        body = json.dumps({"id": id_, "type": "integration.delete", "data": data}).encode()
        self.publishes.append(Publish(self._within(at), "conflict", id_, body))

    def _poison(self, at: float) -> None:
        """What can't be understood; each once only, so that it can be told from the others."""
        unique, rng = self._uuid(), self.rng
        deep = b'{"a":' * 40 + b"1" + b"}" * 40
        body = rng.choice(
            (
                b"not json at all " + unique.encode(),
                b"\xff\xfe" + unique.encode(),
                json.dumps({"id": unique, "type": "integration.paint", "data": {}}).encode(),
                json.dumps({"id": unique, "type": "integration.create", "data": []}).encode(),
                b'{"id":"%s","type":"integration.create","data":%s}' % (unique.encode(), deep),
                b'{"id":"%s","data":NaN,"type":"x"}' % unique.encode(),
                json.dumps(
                    {
                        "id": unique,
                        "type": "integration.create",
                        "data": {"organization_id": _CANARY, "apikey": _CANARY},
                    }
                ).encode(),
            )
        )
        self.publishes.append(Publish(self._within(at), "poison", unique, body))

    def _within(self, at: float) -> float:
        """The same time, or one near the end when that comes first."""
        if at > self.seconds:
            at = self.seconds * self.rng.uniform(0.9, 1.0)
        return max(0.0, round(at, 3))

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
