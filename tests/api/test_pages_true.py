"""Every sentence on a page is true when it is read. Found in use: calm while 413 phones are gone.

One list says what is wrong now, for the first page, ``doctor`` and the readiness check.
"""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.streams import Backlog
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages.reconciliation import Drifted, headline
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.attention import Situation, problems, situation
from tests.api.conftest import OPERATOR, OUR_KEY, OURS
from tests.api.pages import hasty_parts, look, made, parked, signed_in
from tests.support.commandline import commandline
from tests.support.driving import delete, outcome, publish

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FINE = Situation(workers=1, unrelayed=0, revision=None)


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    async with hasty_parts(settings) as parts:
        yield parts


@pytest.fixture
async def ana(address_: str) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in(address_, OPERATOR) as client:
        yield client


# --- one list ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "backlog", "codes"),
    [
        ({}, None, []),
        ({}, Backlog(0, 0, 0, 1, 0), []),
        ({"parked": 2}, None, ["parked"]),
        ({"phones": {"missing": 413}}, None, ["phones"]),
        ({}, Backlog(10, 0, 0, 1, 10), ["dead_letters"]),
        ({}, Backlog(9000, 9000, 0, 1, 0), ["commands"]),
        ({"drifts": 5}, None, ["drift"]),
        ({"asked": 5}, None, ["repairs"]),
        ({"workers": 0}, None, ["workers"]),
        ({"workers": 0, "unrelayed": 3}, None, ["workers", "relay"]),
        ({"unrelayed": 3}, None, []),
        ({"unrelayed": 30_000}, None, ["relay"]),
        ({"overdue": 1}, None, ["overdue"]),
        ({"revision": "0001"}, None, ["schema"]),
        ({"chores": {"reconcile": "no list"}}, None, ["chores"]),
        ({"workers": None, "unrelayed": None}, None, []),
    ],
)
def test_what_is_wrong_is_named_with_a_cure(
    fields: dict[str, Any], backlog: Backlog | None, codes: list[str]
) -> None:
    found = problems(Situation(**{"workers": 1, "unrelayed": 0, **fields}), backlog)
    assert [one.code for one in found] == codes
    assert all(one.cure or one.code == "chores" for one in found)
    assert all(not any(c.isdigit() for c in one.kind) for one in found if one.code != "chores")


async def test_missing_phones_dead_letters_and_drifts_are_no_calm_anywhere(
    ana: httpx.AsyncClient,
    nobody: httpx.AsyncClient,
    parts: AppContext,
    settings: Settings,
    tmp_path: Path,
) -> None:
    for number in range(3):
        await insert(parts.pool, f"clinic-{number}", "missing")
    await parts.redis.xadd(streams.DEAD_COMMANDS, {"data": "?"})
    await parts.pool.execute(_DRIFT, "clinic-1", OURS, 2)
    page = await look(ana, "/")
    assert "No known problems" not in page.text
    assert "3 phones are not connected" in page.text
    assert "3 integrations not connected: 3 missing" in page.text
    assert "delete it and create it anew" in page.text.lower()
    assert "1 drift is known" in page.text
    assert "/ui/letters" in [a.get("href") for a in page.all("a")]
    ready = (await nobody.get("/readyz")).json()
    assert ready["ready"], "they are for a person, not for a load balancer"
    for code in ("phones", "dead_letters", "drift"):
        check = ready["checks"][code]
        assert (check["ok"], check["needed"]) == (False, False)
        assert not any(character.isdigit() for character in check["said"])
    doctor = await commandline(tmp_path, settings)("doctor", "--json")
    told = {check["check"]: check for check in doctor.json["checks"]}
    assert told["phones"]["said"] == "3 integrations not connected: 3 missing"
    assert told["drift"]["verdict"] == told["phones"]["verdict"] == "warn"


async def test_an_organization_is_told_of_its_own_alone(parts: AppContext, address_: str) -> None:
    await insert(parts.pool, "clinic-theirs", "missing", uuid.uuid4())
    assert (await situation(parts.pool, OURS)).phones == {}
    async with signed_in(address_, OUR_KEY) as ours:
        assert "No known problems" in (await look(ours, "/")).text
        await insert(parts.pool, "clinic-ours", "banned", OURS)
        assert "1 phone is not connected" in (await look(ours, "/")).text


async def test_what_no_check_has_seen_yet_is_as_its_row_says(parts: AppContext) -> None:
    await insert(parts.pool, "clinic-lost", None, status="disconnected")
    await insert(parts.pool, "clinic-new", None, status="pending")
    assert (await situation(parts.pool)).phones == {"disconnected": 1}


# --- upkeep -----------------------------------------------------------------------------------


def drifted(looks: int) -> Drifted:
    return Drifted("missing", "x", None, NOW, looks, 1, NOW, "", "", True)


@pytest.mark.parametrize(
    ("drifts", "compared", "blind", "said"),
    [
        ([], None, False, "The stores have not been compared yet"),
        ([], NOW - timedelta(hours=3), False, "The stores agreed when they were compared, 3 h ago"),
        ([], NOW - timedelta(hours=3), True, "The stores could not be compared, 3 h ago"),
        ([drifted(2)], NOW, False, "1 thing is not as it should be"),
        ([drifted(0)] * 5, NOW, False, "5 repairs were requested and not checked since"),
        ([drifted(0), drifted(1)], NOW, False, "1 thing is not as it should be"),
    ],
)
def test_upkeep_says_when_and_not_that_it_is_so_now(
    drifts: list[Drifted], compared: datetime | None, blind: bool, said: str
) -> None:
    assert headline(drifts, 0, compared, blind, NOW) == said
    assert headline(drifts, 2, compared, blind, NOW) == f"{said}; 2 phones are not connected"


async def test_a_repaired_drift_was_not_seen_zero_times(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    await parts.pool.execute(_DRIFT, "clinic-1", OURS, 0)
    await parts.pool.execute("UPDATE evosaga.sightings SET repairs = 1, repaired_at = now()")
    page = await look(ana, "/ui/upkeep")
    assert "1 repair was requested and not checked since" in page.text
    assert "0 times" not in page.text
    assert "not checked since" in page.text


async def test_an_alert_that_nobody_was_sent_is_not_told_as_sent(
    ana: httpx.AsyncClient, parts: AppContext
) -> None:
    id_ = await insert(parts.pool, "clinic-1", "down")
    await parts.pool.execute(
        "UPDATE evosaga.connections SET alerted_at = now() WHERE integration_id = $1", id_
    )
    page = await look(ana, "/ui/upkeep")
    assert "Somebody was told" not in page.text
    assert "as an event and in the log alone" in page.text


# --- one integration --------------------------------------------------------------------------


async def test_a_parked_delete_is_not_at_work(
    ana: httpx.AsyncClient, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    saga = await made(parts, organization_id=str(OURS))
    name = str(saga.instance_name)
    evolution.arm("reject", operation="delete", name=name, times=None, message="no")
    command = delete(name)
    await publish(parts.redis, command)
    assert (await outcome(parts.pool, command["id"], 60)).status == "failed"
    page = await look(ana, f"/ui/integrations/{name}")
    assert "A delete is at work" not in page.text
    assert "Its delete is parked" in page.text
    assert "While a saga is at work" not in page.text
    part = await ana.get(f"/ui/integrations/{name}/pairing", headers={"HX-Request": "true"})
    assert "Its delete is parked" in part.text
    await parts.pool.execute("DELETE FROM healthcare.integrations")
    gone = await ana.get(f"/ui/integrations/{name}/pairing", headers={"HX-Request": "true"})
    assert (gone.status_code, gone.headers["HX-Refresh"]) == (204, "true")


async def test_a_page_never_says_paired_above_a_row_that_follows_only_later(
    ana: httpx.AsyncClient, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    saga = await made(parts, organization_id=str(OURS), channel="WHATSAPP-BAILEYS")
    name = str(saga.instance_name)
    evolution.pair(name)
    page = await look(ana, f"/ui/integrations/{name}")
    assert "Paired" in page.text
    assert "pending" not in page.text


async def test_a_parked_saga_is_told_once_in_the_headline(
    ana: httpx.AsyncClient, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    await parked(parts, evolution)
    text = (await look(ana, "/")).text
    assert text.count("1 saga parked") == 1


async def insert(
    pool: Pool,
    name: str,
    state: str | None,
    organization_id: uuid.UUID | None = None,
    status: str = "disconnected",
) -> uuid.UUID:
    """An integration that the last health check found to be so."""
    id_ = uuid.uuid4()
    await pool.execute(
        "INSERT INTO healthcare.integrations (id, organization_id, status, config) "
        "VALUES ($1, $2, $3, jsonb_build_object('instance_name', $4::text))",
        id_,
        organization_id or uuid.uuid4(),
        status,
        name,
    )
    if state is not None:
        await pool.execute(
            "INSERT INTO evosaga.connections (integration_id, state) VALUES ($1, $2)", id_, state
        )
    return id_


_DRIFT = """
INSERT INTO evosaga.sightings (what, instance_name, organization_id, looks)
VALUES ('missing', $1, $2, $3)
"""
