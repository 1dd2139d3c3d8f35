"""The faults of a run: how often each kind strikes, and with what.

The weights are those of section 5 of our list of faults: kills above all, then broken connections,
paused processes, deaths at sync points, Evolution's own trouble, and now and then a server that
stops or forgets. Some faults are put together on purpose, since chance alone would hardly ever
produce what must be seen at least once (``SCRIPTED``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

LEASE: Final = 2.5
"""Seconds; the default, so that what is measured is what a user gets."""
QUIET: Final = 1.5
WATCH_AFTER: Final = (1.0, 4.0, 9.0, 14.0)

POINTS: Final = (
    "cmd.read", "acc.pre", "acc.post", "ack.post",
    "start.post", "eff.post", "out.post",
    "start.post:evolution", "eff.post:evolution", "out.post:evolution", "out.post:postgres",
    "start.post:cache", "eff.post:cache", "eff.post:notify",
    "comp.start.post", "comp.eff.post", "comp.out.post",
    "rel.read", "rel.xadd", "rel.mark",
    "api.pre", "api.post", "wh.pre", "wh.post",
)  # fmt: skip
BASE_POINTS: Final = tuple(dict.fromkeys(point.partition(":")[0] for point in POINTS))

_WEIGHTS: Final = {
    "kill": 30, "stop": 14, "sync": 17, "proxy": 20, "mode": 12, "postgres": 2.5, "valkey": 2.5,
    "deploy": 2, "drop": 1, "stranger": 1, "pair": 4,
}  # fmt: skip
_MATCHES: Final = {
    "evolution": (b"POST /instance/create", b"DELETE /instance/delete", b"GET /instance", b""),
    "postgres": (b"COMMIT", b"INSERT", b"UPDATE", b"SELECT", b""),
    "valkey": (b"XACK", b"XREADGROUP", b"XADD", b"EVAL", b"PUBLISH", b"XAUTOCLAIM", b""),
    "front": (b"POST /webhooks", b"POST /commands", b""),
}


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault, ``at`` so many seconds; ``slot`` is the worker it is meant for."""

    at: float
    kind: str
    slot: int = 0
    how: Mapping[str, Any] = field(default_factory=dict)


class Load(Protocol):
    """What scripted faults need of the load: creates to strike, commands to add."""

    names: list[tuple[float, str]]

    def steer(self, kind: str, at: float, saga_id: str) -> None: ...
    def delete(self, at: float, name: str, **more: Any) -> str: ...


def draw_faults(
    rng: Random,
    *,
    seconds: float,
    count: int,
    workers: int,
    modes: Mapping[str, Mapping[str, Any]],
    load: Load,
    thorough: bool,
) -> list[Strike]:
    """``thorough``: everything there is at least once, which a short run has no time for."""
    known = sorted(mode for mode in modes if mode != "restore")  # that is a disaster of its own
    kinds: list[tuple[str, dict[str, Any]]] = []
    strikes: list[Strike] = []
    if thorough:
        kinds += [("mode", {"mode": mode}) for mode in known]
        kinds += [("sync", {"at": point, "do": "kill", "nth": 1}) for point in POINTS]
        kinds += [("sync", {"at": "eff.post:evolution", "do": "stop"})] * 3
        strikes += _disasters(rng, seconds)
    every = 1 if not thorough else 6
    for script in SCRIPTED * every:
        strikes += script(rng, load, seconds)
    while len(kinds) + len(strikes) < count:
        kinds.append((rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0], {}))
    rng.shuffle(kinds)
    gap = seconds * 0.97 / len(kinds)
    for n, (kind, given) in enumerate(kinds):
        at = round((n + rng.random()) * gap + 0.5, 3)
        slot = rng.randrange(workers + 1)  # the last is the API
        strikes.append(Strike(at, kind, slot, _drawn(rng, kind, given, modes, known)))
    return strikes


def _drawn(
    rng: Random,
    kind: str,
    given: dict[str, Any],
    modes: Mapping[str, Mapping[str, Any]],
    known: Sequence[str],
) -> dict[str, Any]:
    """The particulars of a strike."""
    match kind:
        case "stop":
            return {"seconds": round(LEASE * rng.uniform(1.0, 3.0), 2)}
        case "sync":
            chosen = {"at": rng.choice(POINTS), "do": rng.choices(("kill", "stop"), (5, 1))[0]}
            return {"nth": rng.choice((1, 1, 2, 5)), **chosen, **given}
        case "proxy":
            return _drawn_proxy(rng)
        case "mode":
            mode = given.get("mode") or rng.choice(known)
            return _drawn_mode(rng, mode, modes[mode])
        case "postgres" | "valkey":
            return {"seconds": round(rng.uniform(0.2, 2.0), 2)}
        case _:
            return {}


def _drawn_proxy(rng: Random) -> dict[str, Any]:
    service = rng.choice(("evolution", "evolution", "postgres", "postgres", "valkey", "front"))
    how = rng.choices(("cut", "hole", "delay", "refuse", "hang"), (10, 4, 3, 3, 2))[0]
    drawn: dict[str, Any] = {"service": service, "how": how, "everybody": rng.random() < 0.2}
    drawn["seconds"] = round(rng.uniform(0.3, 2.5), 2)
    if how in ("cut", "hole"):
        drawn["match"] = rng.choice(_MATCHES[service]).decode()
        drawn["direction"] = rng.choices(("down", "up"), (3, 1))[0]
    if how == "cut":
        drawn["after"] = rng.choice((0, 0, 0, 1, 100))
        drawn["times"] = rng.choice((1, 1, 2, 4))
    if how == "delay":
        drawn["delay"] = round(rng.uniform(0.02, 0.3), 3)
    return drawn


def _drawn_mode(rng: Random, mode: str, told: Mapping[str, Any]) -> dict[str, Any]:
    possible: list[str] = [o for o in told["operations"] if o in _USED] or told["operations"]
    drawn: dict[str, Any] = {"mode": mode, "operation": rng.choice(possible)}
    drawn["times"] = 1 if mode in ("restart", "kill", "foreign", "drop") else rng.choice((1, 2, 4))
    if "seconds" in told["parameters"]:
        # What Evolution removes by itself it removes soon; QUIET is what is set for that.
        longest = QUIET * 0.5 if mode in _REMOVALS else 4.0
        drawn["seconds"] = round(rng.uniform(0.2, longest), 2)
    if mode == "restart":
        drawn |= {"warmup": round(rng.uniform(0, 1.5), 2), "down": round(rng.uniform(0, 1.0), 2)}
    if mode == "late":
        drawn["reply"] = rng.choice(("504", "cut", "hang"))
    if mode == "create_race":
        drawn["winner"] = rng.choice(("ours", "theirs", "half"))
    if mode == "kill":
        drawn |= {"after": rng.choice(("instance", "webhook", "settings"))}
        drawn |= {"warmup": round(rng.uniform(0, 1.5), 2), "down": round(rng.uniform(0, 1.0), 2)}
    if mode == "db_lost":
        drawn["after"] = rng.choice(("nothing", "instance", "webhook"))
    if mode == "redirect":
        drawn["status"] = rng.choice((301, 302, 307))
    return drawn


_REMOVALS: Final = ("400_async_remove", "second_removal")
_USED: Final = ("create", "delete", "connectionState", "fetch", "connect")


def _disasters(rng: Random, seconds: float) -> list[Strike]:
    """Data that is gone: once each, not too close to the ends."""
    first, second, third = (round(seconds * rng.uniform(a, a + 0.12), 2) for a in (0.2, 0.45, 0.7))
    return [
        Strike(first, "flush"),
        Strike(second - 8.0, "aof.copy"),
        Strike(second, "aof.restore"),
        Strike(third - 3.0, "snapshot"),
        Strike(third, "restore"),
    ]


# -- faults that belong together


def _take(rng: Random, load: Load, seconds: float) -> tuple[float, str] | None:
    """A create that no other script has taken."""
    fit = [entry for entry in load.names if seconds * 0.05 < entry[0] < seconds * 0.9]
    if not fit:
        return None
    chosen = rng.choice(fit)
    load.names.remove(chosen)
    return chosen


def _arm(at: float, name: str, mode: str, **how: Any) -> Strike:
    return Strike(max(0.0, round(at - 0.4, 3)), "mode", 0, {"mode": mode, "name": name, **how})


def lands_late(rng: Random, load: Load, seconds: float) -> list[Strike]:
    """C7: a create is lost, the saga is cancelled and undone, and then the instance lands."""
    if (taken := _take(rng, load, seconds)) is None:
        return []
    at, name = taken
    load.steer("cancel", at + 0.5, name.removeprefix("wa-"))
    late = round(rng.uniform(6.0, 10.0), 2)
    return [_arm(at, name, "late", operation="create", times=1, seconds=late, reply="504")]


def meets_itself(rng: Random, load: Load, seconds: float) -> list[Strike]:
    """C8: the create that was lost lands while the one that repeats it is on its way: 403, ours."""
    if (taken := _take(rng, load, seconds)) is None:
        return []
    at, name = taken
    # The second try comes 0.8 to 2.8 s after the first was reported lost, and is held up for 3.
    return [
        _arm(at, name, "late", operation="create", times=1, seconds=QUIET + 1.7, reply="504"),
        _arm(at, name, "slow", operation="create", times=4, seconds=3.0),
    ]


def meets_a_stranger(rng: Random, load: Load, seconds: float) -> list[Strike]:
    """C9: somebody takes the name a moment before."""
    if (taken := _take(rng, load, seconds)) is None:
        return []
    return [_arm(*taken, "foreign", operation="create", times=1)]


def refused_fill(rng: Random, load: Load, seconds: float) -> list[Strike]:
    """F3: the mark of a removal is there before the routing key is filled."""
    if (taken := _take(rng, load, seconds)) is None:
        return []
    at, name = taken
    return [Strike(max(0.0, at - 0.4), "mark", 0, {"name": name, "wrong": False})]


def broken_mark(rng: Random, load: Load, seconds: float) -> list[Strike]:
    """F8: the mark is of a wrong type, so that filling fails for good, and all is undone."""
    if (taken := _take(rng, load, seconds)) is None:
        return []
    at, name = taken
    return [Strike(max(0.0, at - 0.4), "mark", 0, {"name": name, "wrong": True})]


def called_off(rng: Random, load: Load, seconds: float) -> list[Strike]:
    """A delete is held up before its point of no return, and called off."""
    if (taken := _take(rng, load, seconds)) is None:
        return []
    at, name = taken
    later = at + 12.0
    delete = load.delete(later, name)
    for patience in (0.8, 2.5, 5.5, 12.0, 25.0):  # the world may be slow
        load.steer("cancel", later + patience, delete)
    return [_arm(later, name, "5xx_before", operation="connectionState", times=60)]


SCRIPTED: Final[tuple[Callable[[Random, Load, float], list[Strike]], ...]] = (
    lands_late, meets_itself, meets_a_stranger, refused_fill, broken_mark, called_off
)  # fmt: skip
