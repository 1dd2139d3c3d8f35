"""``make bench``: measure everything in one run, and say what it comes to."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from tests.harness.bench import appends, finding, http, measures, report, scale, sizes, upkeep
from tests.harness.bench.catch_up import catch_up
from tests.harness.bench.fleet import fleet
from tests.harness.bench.measures import Result
from tests.harness.bench.peers import PEERS, missing
from tests.harness.bench.rig import Rig, rig
from tests.harness.bench.throughput import throughput

LETTERS = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p")
"""a, b and d are measured in the same rounds, so each of them stands for all three."""


def _some(text: str) -> int:
    """At least one."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _letters(text: str) -> str:
    """Such as ``ae``."""
    if not text or set(text) - set(LETTERS):
        raise argparse.ArgumentTypeError(f"letters of {''.join(LETTERS)}, as the table has them")
    return text


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    add = parser.add_argument
    add("--creates", type=_some, default=3000, metavar="N", help="sagas a round (default: 3000)")
    add("--rounds", type=_some, default=3, metavar="N", help="rounds of a ratio (default: 3)")
    add(
        "--large",
        type=_some,
        default=1_000_000,
        metavar="N",
        help="sagas for (f), default 1,000,000",
    )
    add(
        "--integrations",
        type=_some,
        default=100_000,
        metavar="N",
        help="integrations for (l), default 100,000",
    )
    add("--quick", action="store_true", help="a tenth of everything: a smoke test, no measurement")
    add("--only", type=_letters, metavar="LETTERS", help=f"such as ae, of {''.join(LETTERS)}")
    add(
        "--peer",
        choices=(*PEERS, "all"),
        action="append",
        default=[],
        help="run it beside ours, if it is installed; may be repeated",
    )
    add("--json", action="store_true", help="JSON on stdout; progress goes to stderr")
    add("--plots", type=Path, metavar="FOLDER", help="write the pictures there (docs)")
    wanted = parser.parse_args()
    wanted.peer = [PEERS[name] for name in PEERS if {name, "all"} & set(wanted.peer)]
    for peer in wanted.peer:
        if told := missing(peer):
            parser.error(told)
    return wanted


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


async def measure(one: Rig, wanted: argparse.Namespace, say: Callable[[str], None]) -> list[Result]:
    """Everything that was asked for, in order."""
    tenth = 10 if wanted.quick else 1
    count, rounds = max(1, wanted.creates // tenth), 1 if wanted.quick else wanted.rounds
    chosen = wanted.only or "".join(LETTERS)
    results: list[Result] = []
    if "a" in chosen or "b" in chosen or "d" in chosen:
        results += await throughput(one, count, rounds, say, wanted.peer)
    if "c" in chosen:
        results.append(await measures.one_at_a_time(one, 200 // tenth, say, wanted.peer))
    if "e" in chosen:
        results.append(await measures.recovery(one, 500, say))
    if "f" in chosen:
        results += await sizes.at_size(one, (10_000 // tenth, wanted.large // tenth), say)
    if "g" in chosen:
        results.append(await upkeep.folding(one, 5000 // tenth, say))
    if "h" in chosen:
        results.append(await upkeep.at_rest(one, 20 / tenth, say))
        results.append(await upkeep.crowded(one, 10_000 // tenth, say))
    if "i" in chosen:
        results += await upkeep.delivery(one, count, say)
    if "j" in chosen:
        results += await http.latency(one, 500 // tenth, say)
    if "k" in chosen:
        results += await finding.found(one, 100_000 // tenth, say)
    if "l" in chosen:
        results += await scale.health(one, wanted.integrations // tenth, say)
    if "m" in chosen:
        results.append(await scale.sweep(one, wanted.large // tenth, say))
    if "n" in chosen:
        results += await appends.appends(one, 3 / tenth, rounds, say)
    if "o" in chosen:
        results.append(await fleet(one, say, workers=100 // tenth, servers=200 // tenth))
    if "p" in chosen:
        results.append(await catch_up(one, 360_000 // tenth, say))
    return results


async def main(wanted: argparse.Namespace) -> int:
    say = progress
    say(report.machine())
    async with rig() as one:
        results = await measure(one, wanted, say)
    print(report.as_json(results) if wanted.json else report.table(results))
    if wanted.plots:
        for path in report.draw(results, wanted.plots):
            say(f"drew {path}")
    # A smoke test shows that it runs; one short round is no measurement to fail over.
    return 0 if wanted.quick or all(one.met is not False for one in results) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(read_arguments())))
