"""One table that says what was done, what came of it, and that nothing was broken."""

from collections import Counter
from typing import Any

from tests.harness.chaos.checks.rest import history_of
from tests.harness.chaos.judge import Verdict, middle
from tests.harness.chaos.sometimes import ambiguities, takeovers
from tests.harness.chaos.stage import Outcome
from tests.harness.chaos.topology import SERVER_AWAY

_WIDTH = 44
_MOST = 12


def summary(o: Outcome, v: Verdict) -> dict[str, Any]:
    """The report as data."""
    faults = injected(o)
    closed = sorted(
        (history[-1].recorded_at - history[0].recorded_at).total_seconds()
        for history in o.evidence.histories.values()
        if o.evidence.start(history[0].saga_id).saga != "watch-instance"
    )
    return {
        "seed": o.plan.seed,
        "plan": o.plan.mark,
        "evolution": o.plan.version,
        "seconds": round(o.seconds, 1),
        "sagas": _by_outcome(o),
        "commands": {
            "published": len(o.publisher.told),
            "accepted over HTTP": o.publisher.by_http,
            "declined over HTTP": len(o.publisher.declined),
            "published again": o.publisher.repeated,
            "sent again after Redis lost them": o.publisher.again,
            "not acknowledged at first": o.publisher.refused,
            "by kind": dict(Counter(told.kind for told in o.publisher.told.values())),
        },
        "faults": {"all": sum(faults.values()), **faults},
        "answers that Evolution spoiled": o.nemesis.fired,
        "faults that could not be carried out": o.nemesis.refused,
        "workers that ended by themselves": [
            f"{death.pid}: exit code {death.code}"
            for death in o.topology.deaths
            if not death.by and death.code != SERVER_AWAY
        ],
        "starts while a server was away": sum(d.code == SERVER_AWAY for d in o.topology.deaths),
        "ambiguous outcomes": dict(ambiguities(o.evidence)),
        "take-overs": {
            "attempts lost with their workers": len(takeovers(o.evidence)),
            "seconds amid faults, median": middle(v.amid_faults),
            "seconds amid faults, longest": max(v.amid_faults, default=None),
            "kill -9 in a healthy world": len(v.drilled),
            "seconds then, median": middle(v.drilled),
            "seconds then, longest": max(v.drilled, default=None),
        },
        "seconds to close": {
            "p50": _share(closed, 0.5),
            "p99": _share(closed, 0.99),
            "longest": _share(closed, 1.0),
        },
        "seconds from the heal to rest": o.rest.quiet_after,
        "replayed in the end": o.rest.replayed,
        "repaired by the reconciler in the end": o.rest.repaired,
        "snapshots": o.watcher.looks,
        "must be none": v.counts(),
        "sometimes": v.sometimes,
        "never seen": v.missing,
        "violations": [str(violation) for violation in v.violations],
    }


def injected(o: Outcome) -> dict[str, int]:
    """Faults that really took place. One that lasts is one, however many retries ran into it."""
    found: Counter[str] = Counter(o.nemesis.done)
    found["death or stop at a sync point"] = sum(o.topology.struck.values())
    before = {
        service: [slot.proxies[service] for slot in o.topology.slots]
        for service in ("evolution", "postgres", "valkey")
    }
    before |= {"the publisher's Valkey": [o.topology.publisher], "the API": [o.topology.front]}
    for service, proxies in before.items():
        for proxy in proxies:
            for how, times in proxy.faults.items():
                found[f"{how} before {service}"] += times
    armed = o.nemesis.armed
    found["Evolution's own"] = sum(min(n, armed[mode]) for mode, n in o.nemesis.fired.items())
    del found["deploy"]
    return {kind: times for kind, times in sorted(found.items()) if times}


def table(told: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"seed {told['seed']}, plan {told['plan']}, Evolution {told['evolution']}, "
        f"{told['seconds']:.0f} s",
        "",
    ]
    for title in (
        "sagas", "commands", "faults", "ambiguous outcomes", "take-overs", "seconds to close"
    ):  # fmt: skip
        lines += [title, *_rows(told[title]), ""]
    rest = told["seconds from the heal to rest"]
    lines.append(_row("seconds from the heal to rest", "never" if rest is None else rest))
    for what in ("replayed in the end", "repaired by the reconciler in the end"):
        lines.append(_row(what, told[what]))
    alone = told["workers that ended by themselves"]
    lines.append(_row("workers that ended by themselves", len(alone)))
    away = "starts while a server was away"
    lines += [_row(away, told[away]), ""]
    lines += ["sometimes", *_rows(told["sometimes"]), ""]
    lines += ["must be none", *_rows(told["must be none"])]
    return "\n".join(lines)


def trouble(o: Outcome, v: Verdict) -> str:
    """Each violation, with the history of the saga it is about."""
    lines: list[str] = []
    for violation in v.violations[:_MOST]:
        lines.append(f"✗ {violation}")
        if violation.saga_id is not None:
            lines += [f"    {line}" for line in history_of(o.evidence, violation.saga_id)]
            lines += [f"    {line}" for line in _journal(o, violation.saga_id)]
    if len(v.violations) > _MOST:
        lines.append(f"… and {len(v.violations) - _MOST} more")
    return "\n".join(lines)


def _journal(o: Outcome, saga_id: Any) -> list[str]:
    """What Evolution was asked, and what took effect, for the instance of a saga."""
    name = o.evidence.instance(saga_id)
    return [
        f"evolution {e.received_at:.3f} {e.operation or e.cause} -> {e.status} {e.applied or ''} "
        f"{e.fault or ''}"
        for e in o.evidence.journal
        if e.name == name and (e.operation in ("create", "delete") or e.applied)
    ]


def _by_outcome(o: Outcome) -> dict[str, int]:
    found: Counter[str] = Counter()
    for row in o.evidence.sagas.values():
        found["all"] += 1
        found[f"{row['saga']} {row['status']}"] += 1
    return dict(sorted(found.items()))


def _share(numbers: list[float], share: float) -> float | None:
    return round(numbers[int((len(numbers) - 1) * share)], 2) if numbers else None


def _rows(told: dict[str, Any]) -> list[str]:
    rows = []
    for what, value in told.items():
        if isinstance(value, dict):
            rows += _rows(value)
        else:
            rows.append(_row(what, value))
    return rows


def _row(what: str, value: Any) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value if value is not None else "-")
    return f"  {what:<{_WIDTH}} {shown:>8}"
