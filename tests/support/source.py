"""The product's source, parsed once for all tests that look through it."""

import ast
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    """The module in that file. Whoever has it changes nothing in it."""
    return ast.parse(path.read_text())
