"""Everything that the OpenAPI document allows, and much that it does not, as each kind of key.

The answers must be documented ones, of the documented type and shape, and never our own fault.
"""

import asyncio
import itertools
import warnings
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis.errors import Unsatisfiable

from evosaga.events.database import Pool
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, asked
from tests.support.driving import contradictions

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
# The server shares our process, and so `random`, which hypothesis takes for a strategy's use of it.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
KEYS: Final = {"operator": OPERATOR, "an organization": OUR_KEY, "nobody": None}


async def test_every_route_is_asked_by_one_kind_of_key_and_faults_with_none(
    address_: str, operator: httpx.AsyncClient, pool: Pool
) -> None:
    """Every other one as it is documented, and the rest as it is not."""
    document = await described(operator)
    seen = await asyncio.to_thread(fuzz, document, address_, list(KEYS.values()), 1, both=False)
    assert seen >= {200, 401, 404, 422}, seen
    assert await contradictions(pool) == []


@pytest.mark.long
@pytest.mark.parametrize("who", KEYS)
async def test_no_request_is_answered_with_a_fault_of_ours_or_in_an_undocumented_way(
    address_: str, operator: httpx.AsyncClient, pool: Pool, who: str
) -> None:
    document = await described(operator)
    seen = await asyncio.to_thread(fuzz, document, address_, [KEYS[who]], 4)
    assert seen >= ({200, 401} if who == "nobody" else {200, 404, 422}), seen
    if who == "operator":
        assert seen & {201, 202}, seen  # done within the wait, or accepted
    assert await contradictions(pool) == []


async def described(operator: httpx.AsyncClient) -> dict[str, Any]:
    """The document, with an example by which not everything that is asked for is unknown."""
    made = (await operator.post(CREATE, json=asked())).json()
    told: dict[str, Any] = (await operator.get("/openapi.json")).json()
    for operations in told["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["examples"] = {
                        "known": {"value": made["instance_name"]},
                        "unknown": {"value": "wa-nobody"},
                    }
    return told


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
