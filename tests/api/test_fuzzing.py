"""Everything that the OpenAPI document allows, and much that it does not, as each kind of key.

The answers must be documented ones, of the documented type and shape, and never our own fault.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import httpx
import pytest

from evosaga.events.database import Pool
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, asked
from tests.support.driving import contradictions

# The server shares our process, and so `random`, which hypothesis takes for a strategy's use of it.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
KEYS: Final = {"operator": OPERATOR, "an organization": OUR_KEY, "nobody": None}


async def test_every_route_is_asked_by_one_kind_of_key_and_faults_with_none(
    address_: str, operator: httpx.AsyncClient, pool: Pool
) -> None:
    """Every other one as it is documented, and the rest as it is not."""
    document = await described(operator)
    seen = await fuzzed(document, address_, list(KEYS.values()), 1, both=False)
    assert seen >= {200, 401, 404, 422}, seen
    assert await contradictions(pool) == []


@pytest.mark.long
@pytest.mark.parametrize("who", KEYS)
async def test_no_request_is_answered_with_a_fault_of_ours_or_in_an_undocumented_way(
    address_: str, operator: httpx.AsyncClient, pool: Pool, who: str
) -> None:
    document = await described(operator)
    seen = await fuzzed(document, address_, [KEYS[who]], 4)
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


async def fuzzed(
    document: dict[str, Any],
    where: str,
    keys: Sequence[str | None],
    examples: int,
    *,
    both: bool = True,
) -> set[int]:
    """What ``fuzz`` does, whose imports would cost each test process half a second."""
    from tests.api.document_fuzz import fuzz

    return await asyncio.to_thread(fuzz, document, where, list(keys), examples, both=both)
