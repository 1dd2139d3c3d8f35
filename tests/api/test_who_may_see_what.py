"""Two organizations that can't see each other, on every route there is.

The routes are read off the application, so a new one can't be forgotten: it fails here until it
says what it shows to whom.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from fastapi.routing import APIRoute

from evosaga.events.database import Pool
from evosaga.orchestrator.api.application import create_app
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, list_sagas
from tests.api.conftest import (
    CREATE,
    OPERATOR,
    OUR_KEY,
    OURS,
    THEIR_KEY,
    THEIRS,
    asked,
    client_with,
    problem,
)
from tests.api.standing import ONES
from tests.support.driving import outcome

OPEN: Final = {
    "GET /healthz",
    "GET /readyz",
    "HEAD /healthz",
    "HEAD /readyz",
    "GET /docs",
    "GET /docs.css",
    "GET /asyncapi.json",
}
"""They show nothing of anybody."""

OTHER_DOORS: Final = ("/webhooks/", "/ui", "/static")
"""They have doors of their own, and tests of their own: tokens, and sessions with pages."""

ABOUT_A_SAGA: Final = {
    "GET /sagas/{saga_id}",
    "GET /sagas/{saga_id}/events",
    "GET /sagas/{saga_id}/stream",
    "GET /sagas/{saga_id}/why",
    "GET /sagas/{saga_id}/replay-plan",
    "POST /sagas/{saga_id}/replay",
    "POST /sagas/{saga_id}/cancel",
}
ABOUT_AN_INSTANCE: Final = {
    "GET /integrations/evolution/{instance_name}",
    "GET /integrations/evolution/{instance_name}/qr",
    "DELETE /integrations/evolution/{instance_name}",
}
LISTS: Final = {"GET /sagas", "GET /integrations", "GET /health", "GET /drifts"}
SEARCHES: Final = {"GET /search"}
"""Asked by both in ``test_find``."""
REPAIRS: Final = {"POST /drifts/repair"}
"""Of its own organization alone: asked in ``tests/cli/test_over_http``."""
STARTS: Final = {"POST /sagas"}
"""Asked by both in ``test_start``."""
GIVES: Final = {"POST /integrations/evolution/create", "POST /commands"}
OPERATORS: Final = {
    *("GET /metrics", "GET /dead-letters", "GET /workers", "GET /jobs"),
    *("GET /alerts", "POST /alerts/test"),
    *("GET /recover", "POST /recover", "POST /health/fix"),
    *("DELETE /dead-letters/{letter_id}", "POST /dead-letters/{letter_id}/send"),
}
OF_NOBODY: Final = {"GET /definitions"}
"""With any key: nothing in it belongs to an organization."""


database_url, redis, evolution, settings, parts, address_ = ONES


@dataclass(frozen=True)
class Two:
    """Both organizations with an integration each, and a saga of theirs that is parked."""

    where: str
    our_instance: str
    their_instance: str
    their_saga: str
    parked: str
    parts: AppContext


@pytest.fixture(scope="module")
async def two(parts: AppContext, address_: str, evolution: SimulatedEvolution) -> Two:
    third = str(THEIRS)
    async with client_with(address_, OPERATOR) as client:
        ours = (await client.post(CREATE, json=asked())).json()
        theirs = (await client.post(CREATE, json=asked(organization_id=third))).json()
        evolution.arm("5xx_before", operation="delete", times=None)
        parked = await client.delete(f"/integrations/evolution/{theirs['instance_name']}")
        return Two(
            address_,
            ours["instance_name"],
            theirs["instance_name"],
            theirs["saga_id"],
            problem(parked)["saga_id"],
            parts,
        )


def routes_of(parts: AppContext) -> set[str]:
    """Every route there is, those with doors of their own left out."""
    found: set[str] = set()
    for route in leaves(create_app(parts).routes):
        path = getattr(route, "path", "")
        if path in ("/", "/openapi.json") or path.startswith(OTHER_DOORS):
            continue
        assert isinstance(route, APIRoute), f"what is {route}?"
        found |= {f"{method} {path}" for method in route.methods or ()}
    return found


def leaves(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, those of included routers among them."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from leaves(inner.routes)


async def test_every_route_says_here_what_it_shows_to_whom(parts: AppContext) -> None:
    about_one = ABOUT_A_SAGA | ABOUT_AN_INSTANCE
    told = OPEN | about_one | LISTS | SEARCHES | STARTS | GIVES | REPAIRS | OPERATORS | OF_NOBODY
    assert routes_of(parts) == told


async def test_what_belongs_to_others_looks_exactly_like_nothing_at_all(
    two: Two, pool: Pool
) -> None:
    before = await pool.fetch("SELECT * FROM evosaga.sagas ORDER BY saga_id")
    absent_saga, absent_instance = str(uuid.uuid4()), f"wa-{uuid.uuid4()}"
    pairs = [(route, "saga_id", two.parked, absent_saga) for route in sorted(ABOUT_A_SAGA)]
    # A saga is found by the name of its instance too.
    pairs += [
        (route, "saga_id", two.their_instance, absent_instance) for route in sorted(ABOUT_A_SAGA)
    ]
    pairs += [
        (route, "instance_name", two.their_instance, absent_instance)
        for route in sorted(ABOUT_AN_INSTANCE)
    ]
    async with client_with(two.where, OUR_KEY) as us:
        for route, field, foreign, absent in pairs:
            method, path = route.split(" ")
            answers = [
                await us.request(method, path.replace(f"{{{field}}}", reference))
                for reference in (foreign, absent)
            ]
            assert [answer.status_code for answer in answers] == [404, 404], route
            told = [
                answer.text.replace(reference, "REFERENCE")
                for answer, reference in zip(answers, (foreign, absent), strict=True)
            ]
            assert told[0] == told[1], route
            headers = [set(answer.headers) for answer in answers]
            assert headers[0] == headers[1], route
    after = await pool.fetch(
        "SELECT * FROM evosaga.sagas WHERE organization_id = $1 ORDER BY saga_id", THEIRS
    )
    assert after == [row for row in before if row["organization_id"] == THEIRS]


async def test_what_is_ones_own_is_there(two: Two) -> None:
    """The test above would be green if nothing worked at all."""
    async with client_with(two.where, THEIR_KEY) as them:
        for route in sorted(ABOUT_A_SAGA):
            method, path = route.split(" ")
            saga = two.parked if method == "POST" else two.their_saga
            answer = await them.request(method, path.replace("{saga_id}", saga))
            # The first POST parks it again; what matters is that it is found.
            assert answer.status_code in (200, 202, 409), (route, answer.text)
        again = await outcome(two.parts.pool, two.parked)
        assert again.status == "failed", "Evolution deletes nothing, so it is parked for the others"
        one = await them.get(f"/integrations/evolution/{two.their_instance}")
        assert one.json()["organization_id"] == str(THEIRS)


async def test_lists_hold_only_ones_own_whatever_one_asks_for(two: Two) -> None:
    async with client_with(two.where, OUR_KEY) as us, client_with(two.where, OPERATOR) as operator:
        for path, field in (("/sagas", "sagas"), ("/integrations", "integrations")):
            for query in ("", f"?organization_id={OURS}"):
                told = (await us.get(path + query)).json()[field]
                assert {row["organization_id"] for row in told} == {str(OURS)}, (path, query)
            foreign = await us.get(f"{path}?organization_id={THEIRS}")
            absent = await us.get(f"{path}?organization_id={uuid.uuid4()}")
            assert foreign.json() == absent.json()
            assert foreign.json()[field] == []
            assert not any(foreign.json().values()), "no count and no cursor either"
            everything = (await operator.get(path)).json()[field]
            assert {row["organization_id"] for row in everything} == {str(OURS), str(THEIRS)}
        by_name = await us.get(f"/sagas?instance_name={two.their_instance}")
        # Our own commands about it, which were refused, are ours.
        assert {row["organization_id"] for row in by_name.json()["sagas"]} <= {str(OURS)}
        assert not {row["saga_id"] for row in by_name.json()["sagas"]} & {
            two.their_saga,
            two.parked,
        }


async def test_nobody_gives_commands_about_somebody_else(two: Two, pool: Pool) -> None:
    foreign = asked(organization_id=str(THEIRS))
    async with client_with(two.where, OUR_KEY) as us:
        assert problem(await us.post(CREATE, json=foreign))["code"] == "forbidden"
        for type_, data in (
            ("integration.create", foreign),
            (
                "integration.delete",
                {"instance_name": two.their_instance, "organization_id": str(THEIRS)},
            ),
        ):
            answer = await give(us, type_, data)
            assert (answer.status_code, problem(answer)["code"]) == (403, "forbidden"), type_

        # Of our own commands an organization is not even told that there are any.
        watch = {"instance_name": two.their_instance, "created_by": two.their_saga, "key_id": "x"}
        unknown = set()
        for type_, data in (
            ("instance.watch", watch),
            ("instance.watch", {}),
            ("no.such.thing", {}),
        ):
            answer = await give(us, type_, data)
            assert (answer.status_code, problem(answer)["code"]) == (422, "unknown_type"), type_
            unknown.add(answer.text.replace(type_, "TYPE"))
        assert len(unknown) == 1
        known = "integration.create, integration.delete, saga.cancel, saga.replay"
        assert f"known: {known}" in unknown.pop()
        assert "instance." not in (await us.get("/asyncapi.json")).text.replace("instance.name", "")

        # It is accepted and refused, as it would be if there were no such instance.
        answer = await give(us, "integration.delete", {"instance_name": two.their_instance})
        assert answer.status_code == 202
        refused = (await us.get(answer.headers["location"])).json()
        assert (refused["status"], refused["code"]) == ("rejected", "not_found")

        for type_ in ("saga.replay", "saga.cancel"):
            told = []
            for saga_id in (two.parked, str(uuid.uuid4())):
                answer = await give(us, type_, {"saga_id": saga_id})
                assert answer.status_code == 404
                told.append(answer.text.replace(saga_id, "SAGA"))
            assert told[0] == told[1]
    parked, _ = await list_sagas(pool, Filter(status="failed"))
    assert [str(saga.saga_id) for saga in parked] == [two.parked]


async def test_nobody_gives_our_own_commands_over_http_not_even_an_operator(
    two: Two, pool: Pool
) -> None:
    watch = {"instance_name": two.their_instance, "created_by": two.their_saga, "key_id": "x"}
    before = await pool.fetchval("SELECT count(*) FROM evosaga.sagas")
    async with client_with(two.where, OPERATOR) as operator:
        told = set()
        for type_, data in (
            ("instance.watch", watch),
            ("instance.watch", {}),
            ("key.drop", {"instance_name": two.their_instance}),
            ("no.such.thing", {}),
        ):
            answer = await give(operator, type_, data)
            assert (answer.status_code, problem(answer)["code"]) == (422, "unknown_type"), type_
            told.add(answer.text.replace(type_, "TYPE"))
        assert len(told) == 1
    assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == before


async def test_numbers_over_everybody_are_for_operators(two: Two) -> None:
    async with client_with(two.where, OUR_KEY) as us:
        for route in OPERATORS:
            answer = await us.request(*route.split(" "))
            assert (answer.status_code, problem(answer)["code"]) == (403, "forbidden")


WRONG: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer"},
    {"Authorization": f"Basic {OUR_KEY}"},
    {"Authorization": f"Bearer {OUR_KEY}x"},
    {"X-API-Key": ""},
    {"X-API-Key": "ours"},
    {"X-API-Key": f"ours:{OUR_KEY}"},
    {"Authorization": "Bearer wrong", "X-API-Key": "ours"},
    {"Cookie": "evosaga_session=x"},
]


async def test_without_a_key_or_with_a_wrong_one_nothing_is_told(two: Two) -> None:
    """Each route with one wrong thing, and each wrong thing at some routes."""
    await nothing_is_told(two, lambda number: [{}, WRONG[number % len(WRONG)]])


@pytest.mark.long
async def test_without_a_key_or_with_any_wrong_one_nothing_is_told_by_any_route(two: Two) -> None:
    await nothing_is_told(two, lambda _: WRONG)


async def nothing_is_told(two: Two, tried: Callable[[int], list[dict[str, str]]]) -> None:
    async with client_with(two.where, None) as nobody:
        for number, route in enumerate(sorted(routes_of(two.parts) - OPEN)):
            method, path = route.split(" ")
            path = path.replace("{saga_id}", two.parked)
            path = path.replace("{instance_name}", two.their_instance)
            told = set()
            for headers in tried(number):
                answer = await nobody.request(method, path, headers=headers, content=b"{")
                assert answer.status_code == 401, (route, headers)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                told.add(answer.text)
            assert len(told) == 1
        for name, value in (("Authorization", f"bearer {OUR_KEY}"), ("X-API-Key", OUR_KEY)):
            assert (await nobody.get("/sagas", headers={name: value})).status_code == 200


async def test_an_id_of_somebody_else_is_as_good_as_any_other_and_tells_nothing(two: Two) -> None:
    async with client_with(two.where, OUR_KEY) as us:
        answers = [
            await us.post(CREATE, json=asked(), headers={"Idempotency-Key": id_})
            for id_ in (two.their_saga, two.their_instance, str(uuid.uuid4()))
        ]
        assert {(answer.status_code, answer.text) for answer in answers} == {
            (409, answers[-1].text)
        }
        assert two.their_instance not in answers[-1].text


async def give(client: httpx.AsyncClient, type_: str, data: dict[str, Any]) -> httpx.Response:
    """POST a command under an id of its own."""
    return await client.post(
        "/commands", json={"id": str(uuid.uuid4()), "type": type_, "data": data}
    )
