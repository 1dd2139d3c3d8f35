"""Every code that evosaga gives as a reason is explained somewhere in the documents.

The codes are read out of the source: what outcomes, refusals, dead letters and sentences of
attention are made with. Those of HTTP alone are listed by ``/docs``, which is made from them.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from evosaga.orchestrator.queries import conditions
from tests.support.source import parsed

ROOT = Path(__file__).parents[2]
MAKERS = {
    "AdmissionHeld",
    "BadCommand",
    "Held",
    "Refusal",
    "Rejected",
    "Unknown",
}
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def trees() -> Iterator[ast.Module]:
    for folder in ("events", "sagas", "orchestrator"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            # Demo and simulated servers speak as others do, the API in codes of HTTP.
            if not {"demo", "local", "client", "api"} & set(path.relative_to(ROOT).parts):
                yield parsed(path)


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(text)))
                | ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text)))
            ):
                yield name, text


def given(tree: ast.Module) -> Iterator[ast.expr]:
    """What stands where a code does."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        maker = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
        if maker in MAKERS and call.args:
            yield call.args[0]
        yield from (word.value for word in call.keywords if word.arg == "code")


def attention(tree: ast.Module) -> set[str]:
    """The first words of the ``Problem``s in it."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    problems = (call for call in calls if getattr(call.func, "id", "") == "Problem")
    return {str(call.args[0].value) for call in problems if isinstance(call.args[0], ast.Constant)}


@cache
def codes() -> frozenset[str]:
    everything = list(trees())
    known: dict[str, str] = {}
    for tree in everything:
        known |= dict(constants(tree))
    found = set()
    for path in ("orchestrator/queries/attention.py", "orchestrator/whatsapp/attention.py"):
        found |= attention(parsed(ROOT / path))
    for tree in everything:
        own = known | dict(constants(tree))
        for expression in given(tree):
            match expression:
                case ast.Constant(value=str(text)):
                    found.add(text)
                case ast.Name(id=name) | ast.Attribute(attr=name) if name in own:
                    found.add(own[name])
    return frozenset(code for code in found if CODE.fullmatch(code))


def test_every_code_is_explained_in_the_documents() -> None:
    made = ROOT / "docs" / "reference" / "codes.md"  # from the source as well, so no proof
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page != made]
    told = set(re.findall(r"`([a-z_]+)`", "\n".join(page.read_text() for page in pages)))
    every = codes()
    assert {"half_removed", "instance_incomplete", "worker_lost", "unknown_type"} <= every
    assert sorted(every - told) == []


def test_every_code_of_a_condition_is_looked_into_so_that_its_alert_can_end() -> None:
    made = parsed(ROOT / "orchestrator" / "queries" / "conditions.py")
    calls = (node for node in ast.walk(made) if isinstance(node, ast.Call))
    given = (call.args[1] for call in calls if getattr(call.func, "id", "") == "Condition")
    found = {str(code.value) for code in given if isinstance(code, ast.Constant)}
    found |= attention(parsed(ROOT / "orchestrator" / "queries" / "attention.py"))
    assert found == set(conditions.CODES)
