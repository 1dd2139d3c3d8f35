"""The table at the end, the JSON, and the pictures in ``docs/``."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.harness.bench.measures import Result
from tests.harness.bench.peers import PEERS


def machine() -> str:
    """What it ran on, in a few words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {model}, {platform.system()}, Python {python}"


def table(results: Sequence[Result]) -> str:
    """Plain text, one line a result."""
    lines = [f"{'':4} {'what':30} {'figures':74} {'ratio':>6}  target"]
    for one in results:
        figures = ", ".join(f"{name} {_short(value)}" for name, value in one.values.items())
        figures += f" {one.unit}" if one.unit else ""
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        verdict = "" if one.met is None else ("met: " if one.met else "NOT MET: ")
        lines.append(f"{one.letter:4} {one.what:30} {figures:74} {ratio:>6}  {verdict}{one.target}")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """Everything, for programs."""
    told: dict[str, Any] = {"machine": machine(), "results": [asdict(one) for one in results]}
    return json.dumps(told, indent=2)


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def bars(title: str, values: dict[str, float], unit: str, note: str) -> str:
    """A bar chart as SVG that is readable on light and on dark paper."""
    width, row, left = 640, 30, 190
    largest = max(values.values())
    height = 62 + row * len(values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{title}">',
        "<style>text{font:13px system-ui,sans-serif;fill:#555}.t{font-weight:600;font-size:15px}"
        ".n{font-size:11px}rect{fill:#2a7f62}@media(prefers-color-scheme:dark)"
        "{text{fill:#bbb}rect{fill:#4fb58f}}</style>",
        f'<text class="t" x="0" y="18">{title}</text>',
    ]
    for number, (name, value) in enumerate(values.items()):
        y = 32 + number * row
        length = max(2.0, value / largest * (width - left - 110))
        parts += [
            f'<text x="{left - 10}" y="{y + 16}" text-anchor="end">{name}</text>',
            f'<rect x="{left}" y="{y + 2}" width="{length:.0f}" height="20" rx="3"/>',
            f'<text x="{left + length + 8:.0f}" y="{y + 16}">{_short(value)} {unit}</text>',
        ]
    parts += [f'<text class="n" x="0" y="{height - 8}">{note}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the pictures that the README shows; their paths."""
    folder.mkdir(exist_ok=True)
    note = f"make bench on {machine()}"
    by_what = {one.what: one for one in results}
    written = []
    if (one := by_what.get("creates, one worker")) and (more := by_what.get("more workers")):
        rates = {"hand-written ideal loop": one.values["ideal loop"]}
        if bare := by_what.get("creates, bare loop"):
            rates["the same, bare"] = bare.values["ideal loop, bare"]
        rates |= more.values
        for peer in PEERS.values():
            if beside := by_what.get(f"beside {peer.name}"):
                rates[peer.name] = beside.values[peer.name]
        path = folder / "throughput.svg"
        path.write_text(bars("Creates a second", rates, "/s", note))
        written.append(path)
    if page := by_what.get("a page of 50"):
        path = folder / "queries.svg"
        path.write_text(bars("A page of 50 sagas, newest first", page.values, "ms", note))
        written.append(path)
    return written
