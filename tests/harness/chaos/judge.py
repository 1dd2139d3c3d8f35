"""The verdict: every check over the evidence of a run."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

from tests.harness.chaos.checks import CHECKS
from tests.harness.chaos.checks.leaks import s17, secrets_of
from tests.harness.chaos.evidence import Evidence, Violation
from tests.harness.chaos.plan import PRIVATE
from tests.harness.chaos.sometimes import sometimes, takeovers
from tests.harness.chaos.stage import Outcome
from tests.harness.chaos.topology import API_KEY, HTTP_KEY, SECRET

CANARIES: Final = {
    API_KEY: "the API key of Evolution",
    SECRET: "the secret key",
    HTTP_KEY: "the key of the HTTP API",
}
LONGEST_TAKEOVER: Final = 15.0
"""Seconds that a take-over may take in a world where nothing else is wrong."""
MUST_BE_NONE: Final = {
    "lost": ("S3", "S15", "S16", "L1", "L2", "L5", "L6", "L9"),
    "duplicated effects": ("S6", "S7", "S19"),
    "orphans": ("L3",),
    "strangers touched": ("S8",),
    "ghosts": ("S10", "S11", "S12", "L4", "L8"),
    "secrets leaked": ("S17",),
    "other laws broken": ("S1", "S2", "S4", "S5", "S9", "S13", "S14", "S18", "S20", "L7", "I1"),
}
"""What the report counts, and the checks that speak of it."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong, what was never seen, and how quickly the dead were replaced."""

    violations: list[Violation]
    sometimes: dict[str, int]
    amid_faults: list[float]
    """Seconds of take-overs while everything else broke as well, ascending."""
    drilled: list[float]
    """Seconds of take-overs in a healthy world, ascending."""

    @property
    def missing(self) -> list[str]:
        """What should have been seen at least once."""
        return [what for what, times in self.sometimes.items() if not times]

    def counts(self) -> dict[str, int]:
        """Violations by what they mean to a user; all must be 0."""
        by_law = Counter(violation.law for violation in self.violations)
        return {what: sum(by_law[law] for law in laws) for what, laws in MUST_BE_NONE.items()}


def judge(o: Outcome) -> Verdict:
    """Every check there is."""
    violations = list(check(o.evidence))
    violations += s17(o.evidence, _secrets(o))
    violations += _private_data(o.evidence)
    seen = sometimes(o.evidence, o.logs, o.topology.struck, o.nemesis.redis_lost_at)
    drilled = takeover_seconds(o, o.rest.drilled)
    if drilled and drilled[-1] > LONGEST_TAKEOVER:
        sentence = f"{drilled[-1]:.1f} s after a kill -9, and nothing else was wrong"
        violations.append(Violation("I1", "take-over", sentence))
    if o.rest.quiet_after is None:
        violations.append(Violation("L2", "the world", "it did not come to rest"))
    return Verdict(violations, seen, takeover_seconds(o, o.nemesis.killed), drilled)


def check(evidence: Evidence) -> Iterator[Violation]:
    """What the stores alone can tell."""
    for law in CHECKS:
        yield from law(evidence)
    for told in evidence.snapshots:
        yield Violation("S11" if "snapshot" in told else "S1", "while it ran", told)


def takeover_seconds(o: Outcome, killed: Mapping[int, float]) -> list[float]:
    """From each kill -9 to the first saga of the dead that somebody else has taken over."""
    first: dict[int, float] = {}
    for worker, recorded in takeovers(o.evidence):
        pid = int(worker.rsplit("-", 2)[1])
        if pid in killed:
            took = recorded.recorded_at.timestamp() - killed[pid]
            first[pid] = min(took, first.get(pid, took))
    return sorted(took for took in first.values() if took > 0)


def middle(numbers: list[float]) -> float | None:
    """The median; None of nothing."""
    return median(numbers) if numbers else None


def _secrets(o: Outcome) -> dict[str, str]:
    more = dict(CANARIES)
    more |= dict.fromkeys(o.watcher.codes, "a QR or pairing code")
    return secrets_of(o.evidence, o.evidence.keys, more)


def _private_data(evidence: Evidence) -> Iterator[Violation]:
    """Names and numbers stay in Postgres: no event and no log tells them."""
    for place, text in evidence.texts.items():
        if place == "redis evosaga:events" or place.startswith("log of"):
            for private in PRIVATE:
                if private in text or private.encode("unicode_escape").decode() in text:
                    yield Violation("S17", place, "it holds a clinic's name or number")
