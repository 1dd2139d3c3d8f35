"""``python -m tests.harness.chaos``: break everything, and see whether anything was lost.

Exit code 0 when every check holds, 1 when one does not, or when a run of full length has not seen
all that it should have seen. A shorter run says what it has not seen, and is not judged by it:
what strikes by chance needs time.
"""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness.chaos import standby
from tests.harness.chaos.judge import judge
from tests.harness.chaos.report import summary, table, trouble
from tests.harness.chaos.run import run
from tests.harness.chaos.stage import Options

FULL_SAGAS, FULL_MINUTES = 2000, 5.0
"""A run that has both must see everything of the list."""


def main(argv: list[str] | None = None) -> int:
    """One run and its report."""
    arguments = _parser().parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(10**6)
    options = Options(
        seed,
        arguments.minutes,
        arguments.sagas,
        arguments.version,
        arguments.workers,
        clustered=arguments.topology == "cluster",
        parallel=arguments.parallel,
        keep=arguments.keep.absolute() if arguments.keep else None,
    )

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(f"seed {seed}")
    if arguments.topology == "standby":
        return _fail_over(arguments, seed, say)
    began = time.monotonic()
    outcome = asyncio.run(run(options, say))
    verdict = judge(outcome)
    told = summary(outcome, verdict)
    told["seconds with the checks"] = round(time.monotonic() - began, 1)
    print(json.dumps(told, indent=1, ensure_ascii=False) if arguments.json else table(told))
    if verdict.violations:
        say(trouble(outcome, verdict))
    full = arguments.sagas >= FULL_SAGAS and arguments.minutes >= FULL_MINUTES
    if verdict.missing:
        proves = "the run proves too little" if full else "a longer run may show it"
        say(f"never seen, {proves}: " + ", ".join(verdict.missing))
    failed = bool(verdict.violations or (full and verdict.missing))
    say(f"{'FAILED' if failed else 'passed'}; again with SEED={seed}")
    return 1 if failed else 0


def _fail_over(arguments: argparse.Namespace, seed: int, say: Callable[[str], None]) -> int:
    """Postgres fails over to a standby, twice; the rest of the world is well."""
    with tempfile.TemporaryDirectory(prefix="evosaga-chaos-") as place:
        folder = (arguments.keep or Path(place)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        sagas, seconds = arguments.sagas // 10, arguments.minutes * 60 / 20
        try:
            parallel = arguments.parallel
            asyncio.run(standby.both(sagas, seconds, folder, seed, say, parallel=parallel))
        except AssertionError as wrong:
            say(f"{wrong}\nFAILED; again with SEED={seed}")
            return 1
    say(f"passed; again with SEED={seed}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="what the plan is drawn from; drawn when left out")
    parser.add_argument("--minutes", type=float, default=7.0, help="how long it may take (7)")
    parser.add_argument("--sagas", type=int, default=2200, help="sagas to ask for (2200)")
    parser.add_argument("--version", choices=("2.3.6", "2.3.7"), default="2.3.7")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--topology", choices=("single", "cluster", "standby"), default="single")
    parser.add_argument("--parallel", action="store_true", help="with `evosaga appends --parallel`")
    parser.add_argument("--keep", type=Path, help="a folder for the logs of the workers and so on")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
