"""Asks an API everything that its OpenAPI document allows, and much that it does not."""

import itertools
import warnings
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis.errors import Unsatisfiable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, at import
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

CHECKS: Final = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


def fuzz(
    document: dict[str, Any],
    where: str,
    keys: list[str | None],
    examples: int,
    *,
    both: bool = True,
) -> set[int]:
    """Ask everything a few times, the keys taking turns; the statuses of the answers."""
    seen: set[int] = set()
    config = schemathesis.Config()
    schema = schemathesis.openapi.from_dict(document, config=config)
    schema.config.update(base_url=where)
    turns = itertools.cycle(keys)
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    for number, found in enumerate(schema.get_all_operations()):
        operation: Any = found.ok()  # type: ignore[union-attr]  # an Err would raise here
        for mode in modes if both else modes[number % 2 :][:1]:
            key = next(turns)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            ask(operation, mode, headers, examples, seen)
    return seen


def ask(
    operation: Any,
    mode: GenerationMode,
    headers: dict[str, str],
    examples: int,
    seen: set[int],
) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @profile(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def once(case: Any) -> None:
        if "wait" in (case.query or {}):
            case.query["wait"] = "0"
        response = case.call(headers=headers, timeout=30)
        seen.add(response.status_code)
        case.validate_response(response, checks=list(CHECKS))

    try:
        once()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # where there is nothing that could be wrong
    except Exception as error:
        raise AssertionError(f"{operation.label} ({mode})") from error
