"""What the outside looked like, in files under ``golden/``, and the comparison with them.

A difference is either a mistake or a change of a promise. When it is meant, this writes the files
anew, and the diff belongs into the commit and into the changelog::

    EVOSAGA_WRITE_GOLDEN=1 make test ARGS=tests/contract
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = Path(__file__).parent / "golden"
_WORD: Final = re.compile(r"[a-z]{1,20}([_. -][a-z]{1,20}){0,1}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME: Final = re.compile(r"wa-[0-9a-f-]{36}")
_WORKER: Final = re.compile(r".+-\d+-[0-9a-f]{8}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d.*")


def assert_golden(name: str, value: Any) -> None:
    """``value`` is JSON, and the same as what ``golden/{name}.json`` holds."""
    path = _FOLDER / f"{name}.json"
    if os.environ.get("EVOSAGA_WRITE_GOLDEN"):
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    assert path.is_file(), f"{path.name} is missing; {__doc__}"
    assert value == json.loads(path.read_text()), f"the outside is no longer as {path.name} has it"


def shape(value: Any) -> Any:
    """JSON without what differs from run to run: keys, single words, and the kinds of the rest.

    A list becomes the distinct shapes of its elements, in the order in which they appear.
    """
    match value:
        case Mapping():
            return {_key(key): shape(of) for key, of in value.items()}
        case list():
            distinct: list[Any] = []
            for one in map(shape, value):
                if one not in distinct:
                    distinct.append(one)
            return distinct
        case bool() | None:
            return value
        case int() | float():
            return "<number>"
        case _:
            return _kind(str(value))


def _key(key: str) -> str:
    return _kind(key) if _UUID.search(key) else key


def _kind(text: str) -> str:
    if _UUID.fullmatch(text):
        return "<uuid>"
    if _NAME.fullmatch(text):
        return "<instance name>"
    if _WORKER.fullmatch(text):
        return "<worker>"
    if _TIME.fullmatch(text):
        return "<time>"
    return text if _WORD.fullmatch(text) or not text else "<text>"
