"""The runbook has a paragraph for each code, and dashboard and rules name metrics that exist."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from evosaga.orchestrator.whatsapp.domain import WHATSAPP
from tests.project.test_codes import codes
from tests.support.metric_lint import faults
from tests.support.source import parsed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "monitoring"


def _modules(*folders: str) -> Iterator[ast.Module]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield parsed(path)


def paragraphs() -> dict[str, str]:
    """The runbook's paragraphs by the code in their heading."""
    text = (FOLDER / "runbook.md").read_text()
    parts = re.split(r"^### `([a-z_]+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def exported() -> set[str]:
    """The metrics that the source exports, under the names that a scrape has."""
    found = set()
    for tree in _modules("orchestrator"):
        for node in (one for one in ast.walk(tree) if isinstance(one, ast.Call)):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            first = node.args[0] if node.args else None
            if not isinstance(first, ast.Constant) or not str(first.value).startswith("evosaga_"):
                continue
            metric = str(first.value)
            if name.lower().startswith("histogram"):
                found |= {f"{metric}_{part}" for part in ("bucket", "count", "sum")}
            elif name in ("Counter", "CounterMetricFamily"):
                found.add(f"{metric}_total")
            elif name in ("gauge", "labelled", "GaugeMetricFamily"):
                found.add(metric)
    return found | BUILT


BUILT = {
    *(f"evosaga_{server}_up" for server in ("postgres", "redis")),
    *(f"evosaga_commands_{name}" for name in ("lag", "pending", "dead", "oldest_seconds")),
    "evosaga_sagas",
    "evosaga_integrations",
}
"""Names that are put together; the tests of ``/metrics`` read them from a real answer."""


def test_each_code_of_a_saga_a_refusal_or_a_dead_letter_has_a_paragraph() -> None:
    known = codes()
    assert len(known) > 60, "the search finds what there is"
    assert sorted(known - set(paragraphs())) == []


def test_each_alert_has_a_paragraph_and_a_row_in_its_table() -> None:
    found = set()
    for tree in _modules("orchestrator", "events"):
        for node in (one for one in ast.walk(tree) if isinstance(one, ast.Call)):
            if "Condition" in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
                found |= {str(one.value) for one in node.args[1:2] if isinstance(one, ast.Constant)}
    found |= {"schema", "workers", "overdue", "relay", "commands"}  # which are ``Problem``s first
    found |= {code for domain in (WHATSAPP,) for code in domain.codes}
    assert len(found) >= 13
    assert sorted(found - set(paragraphs())) == []
    table = (ROOT / "docs" / "alerts.md").read_text()
    assert sorted(code for code in found if f"| `{code}` |" not in table) == []


def test_each_paragraph_says_how_to_look_what_to_do_and_what_not_to_do() -> None:
    for code, text in paragraphs().items():
        for part in ("- **Look:** ", "- **Do:** ", "- **Do not** "):
            assert part in text, f"{code} lacks {part}"
        assert len(text.split("\n- ", 1)[0].strip()) > 20, f"{code} does not say what it means"


def test_the_dashboard_and_the_rules_name_only_metrics_that_are_exported() -> None:
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    said = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    [group] = rules["groups"]
    said += [rule["expr"] for rule in group["rules"]]
    named = {name for expr in said for name in re.findall(r"evosaga_[a-z_]+", expr)}
    assert len(named) > 20
    assert sorted(named - exported()) == []


def test_each_rule_leads_to_a_paragraph() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (FOLDER / file).is_file(), rule["alert"]
        assert file != "runbook.md" or anchor in paragraphs(), rule["alert"]
        assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
        assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.parametrize(
    ("scrape", "said"),
    [
        ("# HELP a_x X\n# TYPE a_x counter\na_x 1\n", "a counter ends with _total"),
        ("# HELP a_total X\n# TYPE a_total gauge\na_total 1\n", "only a counter"),
        ("# HELP a_ms X\n# TYPE a_ms gauge\na_ms 1\n", "the base unit is seconds"),
        ("# HELP a_seconds_max X\n# TYPE a_seconds_max gauge\na_seconds_max 1\n", "to the end"),
        ("# TYPE a_x gauge\na_x 1\n", "no help"),
        ("# HELP a:x X\n# TYPE a:x gauge\na:x 1\n", "colons"),
        ("# HELP a_gauge X\n# TYPE a_gauge gauge\na_gauge 1\n", "no part of a name"),
        ('# HELP a_x X\n# TYPE a_x gauge\na_x{le="1"} 1\n', "for histograms"),
        ('# HELP a_seconds X\n# TYPE a_seconds gauge\na_seconds{server="a"} 1\n', ""),
    ],
)
def test_the_check_of_metric_names_finds_what_promtool_finds(scrape: str, said: str) -> None:
    found = faults(scrape)
    assert [said in one for one in found] == [True] if said else found == []
