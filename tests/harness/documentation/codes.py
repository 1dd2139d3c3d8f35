"""Finds the codes that the source names: what steps, admission and commands answer with.

It reads the syntax tree, so that a code can't be forgotten: every call of an outcome's class with a
code as its first argument, be it a literal or a constant of any module.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]
SOURCES: Final = ("events", "sagas", "orchestrator")
OUTCOMES: Final = {
    "Rejected": "rejected",
    "Unknown": "unknown",
    "Held": "held",
    "Refusal": "refused",
    "AlreadyExists": "refused",
    "BadCommand": "dead letter",
}

_CALL: Final = re.compile(rf"\b({'|'.join(OUTCOMES)})\(")
_CONSTANT: Final = re.compile(
    r'^(?P<name>\w+): Final(\[str\])? = "(?P<text>[^"\n]*)"', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Code:
    """A code, how it is answered, and the sentence beside it with ``…`` for what varies."""

    code: str
    outcome: str
    sentence: str


@cache
def sources() -> dict[Path, str]:
    """The product's files with their text, generic code first."""
    files = [path for top in SOURCES for path in sorted((ROOT / top).rglob("*.py"))]
    return {path: path.read_text() for path in files if "client" not in path.parts}


def codes() -> list[Code]:
    """Every code once for each outcome, sorted."""
    found: dict[tuple[str, str], str] = {}
    constants = _constants()
    for text in sources().values():
        for name, call in _calls(text):
            code = _text(call.args[0], constants)
            if code and code.replace("_", "").isalnum():
                said = _text(call.args[1], constants) if len(call.args) > 1 else ""
                known = found.get((code, OUTCOMES[name]), "")
                found[code, OUTCOMES[name]] = known or said
    return [Code(code, outcome, said) for (code, outcome), said in sorted(found.items())]


def mapping(path: str, name: str) -> dict[str, str]:
    """A dictionary of texts that is a constant of a module."""
    constants = _constants()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {_text(k, constants): _text(v, constants) for k, v in pairs if k is not None}
    raise AssertionError(f"{path} has no {name}")


def _calls(text: str) -> Iterator[tuple[str, ast.Call]]:
    if not _CALL.search(text):
        return  # parsing takes ten times as long
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name in OUTCOMES:
                yield name, node


@cache
def _constants() -> dict[str, str]:
    """Texts that are bound to a name of any module; the last one of a name counts."""
    return {
        found["name"]: found["text"]
        for text in sources().values()
        for found in _CONSTANT.finditer(text)
    }


def _text(node: ast.expr, constants: dict[str, str]) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return constants.get(name, "…")
        case ast.JoinedStr(values=values):
            return "".join(_text(value, constants) for value in values)
        case ast.FormattedValue(value=value):
            return _text(value, constants)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, constants) + _text(right, constants)
    return "…"
