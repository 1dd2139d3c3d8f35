"""What is wrong with a field, for people: pydantic's errors without pydantic's words."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import ErrorDetails

_SAID: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "is no field that is known here",
    "string_type": "must be a text",
    "string_unicode": "must be UTF-8 text",
    "string_too_long": "must be at most {max_length} characters",
    "string_too_short": "must be at least {min_length} characters",
    "too_long": "must be at most {max_length} long",
    "too_short": "must be at least {min_length} long",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "finite_number": "must be a finite number",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dataclass_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "mapping_type": "must be a JSON object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "json_invalid": "is no JSON",
}
_KINDS: Final = (
    ("int_", "must be a whole number"),
    ("float_", "must be a number"),
    ("bool_", "must be true or false"),
    ("uuid_", "must be a UUID"),
    ("url_", "must be a URL"),
    ("datetime_", "must be a time such as 2026-01-31T12:00:00Z"),
    ("timezone_", "must be a time with a zone, such as 2026-01-31T12:00:00Z"),
)


def said(problem: ErrorDetails | Mapping[str, Any]) -> str:
    """The problem without its field. Those of our own validators are as they were raised."""
    kind = str(problem["type"])
    if kind in _SAID:
        return _SAID[kind].format_map(problem.get("ctx", {}))
    for prefix, sentence in _KINDS:
        if kind.startswith(prefix):
            return sentence
    return str(problem["msg"]).removeprefix("Value error, ")
