"""Explore from the command line, with figures: ``python -m tests.harness.simulation --help``."""

import argparse
import ast
import time

from tests.harness.simulation.explorer import Broken, explore, run
from tests.harness.simulation.scenarios import SCENARIOS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.simulation", description=__doc__)
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; all by default")
    parser.add_argument("--faults", type=int, default=1, help="how many faults a run has at most")
    parser.add_argument("--sample", type=int, default=1, help="of the last fault, every so-manieth")
    parser.add_argument("--deep", action="store_true", help="all pairs, and a sample of triples")
    parser.add_argument("--unfenced", action="store_true", help="nobody asks his lease")
    parser.add_argument("--repeat", help="the faults of one run, as a failure prints them")
    asked = parser.parse_args()
    fenced = not asked.unfenced
    for name in asked.scenario or SCENARIOS:
        if asked.repeat:
            repeat(name, asked.repeat, fenced)
            continue
        for faults, sample in [(2, 1), (3, 97)] if asked.deep else [(asked.faults, asked.sample)]:
            began = time.process_time()
            tally = explore(SCENARIOS[name], faults, fenced=fenced, sample=sample)
            seconds = time.process_time() - began
            print(
                f"{name}: {tally.runs} runs with up to {faults} faults, {len(tally.histories)} "
                f"histories, {len(tally.endings)} endings, {seconds:.1f} s of CPU"
            )


def repeat(name: str, faults: str, fenced: bool) -> None:
    """One run again, with all that happened."""
    try:
        found = run(SCENARIOS[name], ast.literal_eval(faults), fenced=fenced)
    except Broken as broken:
        print(broken)
    else:
        print(f"no law was broken: {', '.join(found.ending)}")


if __name__ == "__main__":
    main()
