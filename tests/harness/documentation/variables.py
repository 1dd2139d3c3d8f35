"""Reads the environment variables from ``Settings``: names, defaults, and the docstring of each."""

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_core import PydanticUndefined

from evosaga.orchestrator.config.settings import Settings
from tests.harness.documentation import meanings


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable, as an operator writes it. ``default``: empty where there is none."""

    name: str
    meaning: str
    default: str


def variables() -> list[Variable]:
    """Every variable of the settings, in the order in which the settings have them."""
    said = _docstrings()
    return [
        Variable(
            f"EVOSAGA_{name.upper()}",
            " ".join(meanings.VARIABLES.get(name, said.get(name, "")).split()),
            _written(field.get_default(call_default_factory=True)),
        )
        for name, field in Settings.model_fields.items()
    ]


def _docstrings() -> Mapping[str, str]:
    """The text below each field of the class."""
    (cls,) = ast.parse(textwrap.dedent(inspect.getsource(Settings))).body
    assert isinstance(cls, ast.ClassDef)
    found = {}
    for field, text in zip(cls.body, cls.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=name), ast.Expr(value=ast.Constant(value=str(said))):
                found[ast.unparse(name)] = said
    return found


def _written(default: object) -> str:
    """A default as one would write it into the environment."""
    if default is None or default is PydanticUndefined or default == "":
        return ""
    if isinstance(default, float) and default.is_integer():
        return f"`{int(default)}`"
    if isinstance(default, tuple):
        numbers = all(isinstance(part, float) for part in default)  # those are written as JSON
        return f"`{json.dumps(default) if numbers else ','.join(default)}`"
    if isinstance(default, Mapping | frozenset):
        return ""
    return f"`{default}`"
