"""What ``promtool check metrics`` finds fault with, for scrapes of ours.

After https://github.com/prometheus/client_golang/tree/main/prometheus/testutil/promlint and
https://prometheus.io/docs/practices/naming/.
"""

import re
from collections.abc import Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_SERIES: Final = ("_count", "_sum", "_bucket")
_TYPES: Final = ("gauge", "counter", "histogram", "summary", "untyped")
_UNITS: Final = {
    "seconds": ("milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "days", "ms"),
    "bytes": ("kilobytes", "megabytes", "gigabytes", "kb", "mb", "bits"),
    "ratio": ("percent", "percentage"),
    "meters": ("kilometers", "millimeters"),
}
"""Base units, and what is written instead of them."""


def faults(scrape: str) -> list[str]:
    """A line for each fault of a scrape in Prometheus's text format."""
    # Clients of Python tell when each counter and histogram was made, as OpenMetrics has it.
    made = re.findall(r"^# TYPE (\S+_created) gauge$", scrape, re.MULTILINE)
    families = [one for one in text_string_to_metric_families(scrape) if one.name not in made]
    helped = set(re.findall(r"^# HELP (\S+) \S", scrape, re.MULTILINE))
    found = [f"{one.name}: {what}" for one in families for what in _of(one)]
    for name in re.findall(r"^# TYPE (\S+)", scrape, re.MULTILINE):
        if name not in helped:
            found.append(f"{name}: no help")
    written = re.findall(r"^# TYPE (\S+) (\S+)$", scrape, re.MULTILINE)
    for name, kind in written:
        if kind == "counter" and not name.endswith("_total"):
            found.append(f"{name}: a counter ends with _total")
        if kind != "counter" and name.endswith("_total"):
            found.append(f"{name}: only a counter ends with _total")
    return found


def _of(family: Metric) -> Iterator[str]:
    name, words = family.name, family.name.split("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        yield "small letters, digits and _ alone: colons are for recording rules"
    if family.type not in ("histogram", "summary") and name.endswith(_SERIES):
        yield "ends like a series of a histogram"
    for word in words:
        if word in _TYPES:
            yield f"the type {word} is no part of a name"
        for base, others in _UNITS.items():
            if word in others:
                yield f"{word}: the base unit is {base}"
            if word == base and words[-1] != base:
                yield f"the unit {base} goes to the end"
    labels = {label for sample in family.samples for label in sample.labels}
    for label in labels:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", label):
            yield f"the label {label}: small letters, digits and _ alone"
    if "le" in labels and family.type != "histogram":
        yield "the label le is for histograms"
    if "quantile" in labels and family.type != "summary":
        yield "the label quantile is for summaries"
