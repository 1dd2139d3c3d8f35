"""What operators read over HTTP: health, drifts, dead letters, workers and background jobs."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.api import fixes
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.health import fix
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, HealthReport, run_once
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, OURS, THEIRS, asked, client_with, problem
from tests.api.standing import ONES
from tests.support.waiting import eventually

database_url, redis, evolution, settings, parts, address_ = ONES


@pytest.fixture(scope="module")
async def instances(address_: str, settings: Settings) -> dict[str, str]:
    """An integration of each organization; the phone of ours was logged out, theirs has a drift."""
    async with client_with(address_, OPERATOR) as client:
        ours = (await client.post(CREATE, json=asked())).json()
        theirs = (await client.post(CREATE, json=asked(organization_id=str(THEIRS)))).json()
    pool: Pool = await open_pool(str(settings.database_url))
    await pool.execute(
        "INSERT INTO evosaga.connections (integration_id, state, since, looks, reconnects, reason) "
        "VALUES ($1, 'needs_qr', now(), 2, 0, 401)",
        ours["integration_id"],
    )
    await pool.execute(
        "INSERT INTO evosaga.sightings (what, instance_name, organization_id) "
        "VALUES ('orphan', $1, $2), ('of_a_newer_release', $3, $4)",
        *(theirs["instance_name"], THEIRS, ours["instance_name"], OURS),
    )
    pool.terminate()
    return {"ours": ours["instance_name"], "theirs": theirs["instance_name"]}


async def ask(where: str, path: str, key: str = OPERATOR) -> Any:
    async with client_with(where, key) as client:
        answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_health_tells_what_is_wrong_with_each_phone_and_the_cure(
    address_: str, instances: dict[str, str]
) -> None:
    told = await ask(address_, "/health?well=false")
    (one,) = told["connections"]
    assert (one["instance_name"], one["state"], one["reason"]) == (
        instances["ours"],
        "needs_qr",
        401,
    )
    assert one["cure"] == "the phone was logged out: scan a new QR code"
    assert (one["well"], one["name"]) == (False, "Clínica Sol")
    well = await ask(address_, "/health?well=true")
    assert [each["instance_name"] for each in well["connections"]] == [instances["theirs"]]


async def test_health_comes_in_pages_that_miss_nothing(
    address_: str, instances: dict[str, str]
) -> None:
    first = await ask(address_, "/health?limit=1")
    second = await ask(address_, f"/health?limit=1&cursor={first['cursor']}")
    names = {page["connections"][0]["instance_name"] for page in (first, second)}
    assert (names, second["cursor"]) == (set(instances.values()), None)


async def test_an_organization_sees_its_own_phones_and_drifts_alone(
    address_: str, instances: dict[str, str]
) -> None:
    health = await ask(address_, "/health", OUR_KEY)
    assert [one["instance_name"] for one in health["connections"]] == [instances["ours"]]
    drifts = await ask(address_, "/drifts", OUR_KEY)
    assert [one["where"] for one in drifts["drifts"]] == [instances["ours"]]
    for path in ("/health", "/drifts"):
        told = await ask(address_, f"{path}?organization_id={THEIRS}", OUR_KEY)
        assert not any(told.get(name) for name in ("connections", "drifts"))


async def test_drifts_have_a_cause_a_repair_and_who_decides(
    address_: str, instances: dict[str, str]
) -> None:
    told = await ask(address_, f"/drifts?organization_id={THEIRS}")
    (one,) = told["drifts"]
    assert (one["what"], one["where"], one["policy"]) == ("orphan", instances["theirs"], "auto")
    assert one["cause"]
    assert one["repair"] == "remove the instance, with its own token"
    assert (await ask(address_, "/drifts?limit=1"))["more"] == 1


async def test_a_drift_that_only_a_newer_release_knows_is_shown_all_the_same(
    address_: str, instances: dict[str, str]
) -> None:
    (one,) = (await ask(address_, f"/drifts?organization_id={OURS}"))["drifts"]
    assert (one["what"], one["policy"]) == ("of_a_newer_release", "never")


async def test_dead_letters_come_newest_first_with_what_was_sent(
    address_: str, redis: Redis
) -> None:
    for sent in (b"first", b"\xff second"):
        await redis.xadd(streams.COMMANDS, {"data": sent})

    async def dead() -> bool:
        return int(await redis.xlen(streams.DEAD_COMMANDS)) == 2

    await eventually(dead, 20)
    newest = await ask(address_, "/dead-letters?limit=1")
    oldest = await ask(address_, f"/dead-letters?limit=1&cursor={newest['cursor']}")
    letters = newest["letters"] + oldest["letters"]
    assert {letter["data"] for letter in letters} == {"first", "\\xff second"}
    assert {letter["code"] for letter in letters} == {"malformed_json", "not_utf8"}
    assert oldest["cursor"] is None
    assert letters[0]["letter_id"] > letters[1]["letter_id"]


async def test_who_asks_for_a_check_while_one_is_under_way_waits_for_that_one(
    address_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, real = 0, asyncio.Event(), fix.fix

    async def counted(doctor: HealthMonitor) -> HealthReport:
        nonlocal begun
        begun += 1
        await may_end.wait()
        return await real(doctor)

    monkeypatch.setattr(fix, "fix", counted)
    async with client_with(address_, OPERATOR) as client:
        late = [client.post("/health/fix?wait=1") for _ in range(2)]
        for answer in await asyncio.gather(*late):
            assert "goes on" in problem(answer)["detail"]
        assert begun == 1
        may_end.set()
        await eventually(lambda: not fixes._going_on, 20)
        assert (await client.post("/health/fix")).status_code == 200
    assert begun == 2, "after its end another one may be asked for"


async def test_workers_tell_what_they_can_run_and_jobs_what_came_of_them(address_: str) -> None:
    (worker,) = (await ask(address_, "/workers"))["workers"]
    assert worker["alive"]
    assert "create-integration/1" in worker["definitions"]

    async def known() -> bool:
        jobs = (await ask(address_, "/jobs"))["jobs"]
        return {job["name"] for job in jobs} >= {"health", "reconcile"}

    await eventually(known, 20)


@pytest.mark.parametrize(
    "path",
    ["/health?well=perhaps", "/health?cursor=x", "/drifts?limit=0", "/dead-letters?cursor=x"],
)
async def test_a_parameter_that_makes_no_sense_is_refused_with_its_name(
    address_: str, path: str
) -> None:
    async with client_with(address_, OPERATOR) as client:
        told = problem(await client.get(path))
    assert told["code"] == "invalid_data"
    name = path.partition("?")[2].partition("=")[0]
    assert told["fields"][0]["where"] == f"query.{name}"


@pytest.mark.parametrize(
    ("path", "place"), [(CREATE, "body"), ("/commands", "body.data")], ids=["create", "commands"]
)
async def test_each_wrong_field_of_a_body_is_named_with_its_place(
    address_: str, path: str, place: str
) -> None:
    data = asked(name="", clinic_id="none", colour="blue")
    body = {"id": "fields", "type": "integration.create", "data": data} if "data" in place else data
    async with client_with(address_, OPERATOR) as client:
        answer: httpx.Response = await client.post(path, json=body)
    told = problem(answer)
    wrong = {field["where"]: field["what"] for field in told["fields"]}
    assert set(wrong) == {f"{place}.{name}" for name in ("name", "clinic_id", "colour")}
    assert all(what and "blue" not in what for what in wrong.values())
    assert json.dumps(told).count("none") == 0  # values may be secrets


# Last, since it leaves a server behind that was away.
async def test_a_check_whose_second_look_fails_says_so_and_not_that_there_is_nothing(
    address_: str, evolution: SimulatedEvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away_after_it(doctor: HealthMonitor, *, eager: bool) -> HealthReport:
        done = await run_once(doctor, eager=eager)
        evolution.arm("5xx_before", operation="fetch", times=None, status=503)
        return done

    monkeypatch.setattr(fix, "run_once", away_after_it)
    async with client_with(address_, OPERATOR) as client:
        told = problem(await client.post("/health/fix"))
    evolution.disarm()
    assert (told["status"], "what came of it is not known" in told["detail"]) == (503, True)
