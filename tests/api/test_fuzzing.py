"""Everything that the OpenAPI document allows, and much that it does not, as each kind of key.

The answers must be documented ones, of the documented type and shape, and never our own fault.
"""

import asyncio
import warnings
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis.errors import Unsatisfiable

from events.database import Pool
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, asked
from tests.driving import contradictions

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
EXAMPLES: Final = 4
KEYS: Final = {"operator": OPERATOR, "an organization": OUR_KEY, "nobody": None}


# The server shares our process, and so `random`, which hypothesis takes for a strategy's use of it.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("who", KEYS)
async def test_no_request_is_answered_with_a_fault_of_ours_or_in_an_undocumented_way(
    address_: str, operator: httpx.AsyncClient, pool: Pool, who: str
) -> None:
    made = (await operator.post(CREATE, json=asked())).json()
    told = (await operator.get("/openapi.json")).json()
    # So that not every saga and instance that is asked for is one that is not there.
    for operations in told["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["examples"] = {
                        "known": {"value": made["instance_name"]},
                        "unknown": {"value": "wa-nobody"},
                    }
    seen = await asyncio.to_thread(fuzz, told, address_, KEYS[who])
    assert seen >= ({200, 401} if who == "nobody" else {200, 202, 404, 422}), seen
    assert await contradictions(pool) == []


def fuzz(document: dict[str, object], where: str, key: str | None) -> set[int]:
    """Ask everything a few times; the statuses of the answers."""
    seen: set[int] = set()
    config = schemathesis.Config()
    schema = schemathesis.openapi.from_dict(document, config=config)
    schema.config.update(base_url=where)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # an Err would raise here
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            ask(operation, mode, headers, seen)
    return seen


def ask(
    operation: Any,
    mode: GenerationMode,
    headers: dict[str, str],
    seen: set[int],
) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @profile(
        max_examples=EXAMPLES,
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
