"""The demo, as anybody would run it: every claim of it is checked by the demo itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def processes() -> set[str]:
    """The command lines of this machine's processes, with their ids; empty where ps is missing."""
    told = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=False)
    return set(told.stdout.splitlines())


@pytest.mark.long
def test_the_demo_keeps_every_claim_in_less_than_a_minute_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    demo = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "evosaga.orchestrator.cli", "demo"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, trouble = demo.communicate(timeout=100)
    assert demo.returncode == 0, said[-3000:] + trouble
    assert trouble == ""
    assert time.monotonic() - began < 60
    for scene in ("1. ", "2. ", "3. ", "4a. ", "4b. ", "4c. ", "5. ", "6. ", "7. "):
        assert f"── {scene}" in said
    assert "\x1b" not in said, "colours in a pipe"
    assert not [line for line in processes() if "evosaga.orchestrator.demo.worker" in line]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_demo_fails_loudly_when_a_claim_does_not_hold(tmp_path: Path) -> None:
    # About its very first scene, since the others cost half a minute.
    lie = (
        "import sys\nfrom evosaga.orchestrator.demo import environment\n"
        "async def key(self, name): return None\n"
        "environment.Stage.key = key\n"
        "from evosaga.orchestrator.cli import main\nsys.exit(main(['demo']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", lie],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 1
    assert "evosaga: NOT SO: Valkey has the key that routes" in ran.stderr
    assert "✓ Valkey has the key" not in ran.stdout
