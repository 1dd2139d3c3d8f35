"""Limits that the linter has no rule for: the length of functions, and cycles of imports."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

from tests.support.source import parsed

ROOT: Final = Path(__file__).parents[2]
PRODUCT: Final = ("orchestrator", "sagas", "events", "migrations")
LONGEST: Final = 60
"""Lines of a function, its decorators and docstring included."""


@cache
def modules() -> Mapping[str, ast.Module]:
    """The product's modules by the names under which they import each other."""
    files = [
        (path, path.relative_to(ROOT)) for top in PRODUCT for path in (ROOT / top).rglob("*.py")
    ]
    found = {dotted(name): parsed(path) for path, name in files}
    for path in (ROOT / "evosaga").glob("*.py"):
        found[dotted(Path(path.name))] = parsed(path)
    return found


def dotted(path: Path) -> str:
    parts = ("evosaga", *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(nodes: Iterable[ast.AST], known: Mapping[str, object]) -> Iterator[str]:
    """What of ``known`` is imported when the module is, or when one of its functions is called."""
    for node in nodes:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from imported(node.orelse, known)
            case ast.Import():
                yield from (one.name for one in node.names if one.name in known)
            case ast.ImportFrom(module=str(source)):
                # ``from package import module`` needs the module; the package is there already.
                named = (f"{source}.{one.name}" for one in node.names)
                yield from (name if name in known else source for name in named)
            case _:
                yield from imported(ast.iter_child_nodes(node), known)


def cycle(imports: Mapping[str, set[str]]) -> list[str]:
    """A ring of modules, each of which imports the one before it; empty when there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as found:
        ring: list[str] = found.args[1]
        return ring
    return []


def test_functions_stay_short() -> None:
    long = {
        f"{name}.{one.name}"
        for name, tree in modules().items()
        if not name.startswith("evosaga.migrations.versions.")
        for one in functions(tree)
        if (one.end_lineno or 0) - min(d.lineno for d in (one, *one.decorator_list)) >= LONGEST
    }
    assert not long


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    imports = {
        name: {other for other in imported(tree.body, known) if other in known} - {name}
        for name, tree in known.items()
    }
    assert sum(map(len, imports.values())) > 1000
    assert not cycle(imports)


def test_a_ring_would_be_found_in_functions_too_and_types_alone_make_none() -> None:
    known = {"a": 1, "a.b": 1, "c": 1}
    lazy = ast.parse("def f():\n    from a import b\n").body
    types = ast.parse("if TYPE_CHECKING:\n    import c\n").body
    assert list(imported(lazy, known)) == ["a.b"]
    assert not list(imported(types, known))
    assert cycle({"a.b": {"c"}, "c": {"a.b"}})
