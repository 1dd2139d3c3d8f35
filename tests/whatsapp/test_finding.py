"""Integrations and sagas are found by what people know of them, by an index, page by page."""

import json
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import pytest

from evosaga.events.database import Pool
from evosaga.migrations.search_indexes import INTEGRATION_WORDS
from evosaga.orchestrator.queries.sagas import BadCursor
from evosaga.orchestrator.whatsapp.integrations import words
from evosaga.orchestrator.whatsapp.integrations.find import find
from evosaga.orchestrator.whatsapp.integrations.in_need import NEEDS
from evosaga.orchestrator.whatsapp.integrations.search import (
    COUNTED,
    Sort,
    Wanted,
    list_integrations,
)

OURS = uuid.UUID("4e8ddba1-ad52-4613-9a03-ec64636b3f6c")
ID = uuid.UUID("0197a3c4-5d2e-7c10-8a51-5f0a6f3b2c11")


async def integration(
    pool: Pool, name: str, *, id_: uuid.UUID | None = None, **columns: Any
) -> uuid.UUID:
    """A row as a saga makes it."""
    id_ = id_ or uuid.uuid4()
    config = {"instance_name": f"wa-{id_}", "name": name} | columns.pop("config", {})
    row = {"status": "connected", "whatsapp_number": None, "organization_id": uuid.uuid4()}
    row |= columns
    await pool.execute(
        "INSERT INTO healthcare.integrations (id, config, status, whatsapp_number, organization_id,"
        " created_at) VALUES ($1, $2, $3, $4, $5, clock_timestamp())",
        id_,
        json.dumps(config),
        *row.values(),
    )
    return id_


async def found(pool: Pool, text: str, **wanted: Any) -> list[str | None]:
    """The names that a search finds."""
    page = await list_integrations(pool, Wanted(search=text, **wanted))
    assert page.count == len(page.integrations)
    return [one.name for one in page.integrations]


@pytest.mark.parametrize(
    "text",
    [
        "Odo",
        "vid",
        "ODONTO VIDA",
        "vida odonto",
        "clinica",
        "clínica",
        "d'Ávila",
        "5511987654321",
        "+55 (11) 98765-4321",
        "98765 4321",
        "11 8765-4321",
        "0197a3c4",
        "0197a3c4-5d2e-7c10",
        "wa-0197a3c4-5d",
        "…6f3b2c11",
        "3b2c11",
        "4e8ddba1",
        str(ID),
        f"wa-{ID}",
    ],
)
async def test_a_clinic_is_found_by_whatever_people_know_of_it(pool: Pool, text: str) -> None:
    name = "Clínica Odonto Vida (D'Ávila)"
    number = "+55 11 98765-4321"
    await integration(pool, name, id_=ID, whatsapp_number=number, organization_id=OURS)
    await integration(pool, "Sol Nascente", whatsapp_number="5521911112222")
    assert await found(pool, text) == [name]


async def test_older_numbers_of_brazil_lack_the_ninth_digit(pool: Pool) -> None:
    await integration(pool, "Sol", whatsapp_number="551187654321")
    assert await found(pool, "(11) 98765-4321") == ["Sol"]
    assert await found(pool, "+55 11 98765-4321") == ["Sol"]


@pytest.mark.parametrize(
    "text",
    ["x", "wa", "'", "\\", "':*", "a & b | !c <-> d", "%", "_" * 9, "é" * 400, "((("],
)
async def test_nothing_that_is_typed_is_an_error_or_finds_everything(pool: Pool, text: str) -> None:
    await integration(pool, "Sol")
    assert await found(pool, text) == []
    assert (await find(pool, text)).empty


async def test_a_letter_of_a_name_finds_no_id_and_no_number(pool: Pool) -> None:
    config = {"clinic_id": f"c{uuid.uuid4().hex[1:]}"}
    await integration(pool, "Odonto Sol", config=config, whatsapp_number="5511987654321")
    assert await found(pool, "odonto c") == await found(pool, "odonto 55") == []


async def test_a_search_for_nothing_but_blanks_narrows_nothing(pool: Pool) -> None:
    await integration(pool, "Sol")
    for text in ("  ", "\0\0", "…"):
        assert await found(pool, text) == ["Sol"]


async def test_an_instance_name_that_somebody_chose_is_found_by_its_words(pool: Pool) -> None:
    await integration(pool, "Sol", config={"instance_name": "matriz-centro_2"})
    for text in ("centro", "matriz-cen", "MATRIZ"):
        assert await found(pool, text) == ["Sol"]


async def test_an_organization_is_found_by_its_id_also_when_its_integration_is_disabled(
    pool: Pool,
) -> None:
    await integration(pool, "Odonto Vida", organization_id=OURS)
    assert (await find(pool, str(OURS)[:10])).organization == OURS
    await pool.execute("UPDATE healthcare.integrations SET enabled = false")
    assert (await find(pool, str(OURS)[:10])).organization == OURS


async def test_organizations_find_their_own_alone(pool: Pool) -> None:
    await integration(pool, "Odonto Vida", organization_id=OURS)
    await integration(pool, "Odonto Sol")
    assert await found(pool, "odonto", organization_id=OURS) == ["Odonto Vida"]
    assert len(await found(pool, "odonto")) == 2
    await begun(pool, "Odonto Lar", organization_id=uuid.uuid4())
    mine = await begun(pool, "Odonto Vida", organization_id=OURS)
    for text in ("odonto", str(mine)[:10]):
        seen = await find(pool, text, OURS)
        assert [saga.saga_id for saga in seen.sagas] == [mine], text
    assert len((await find(pool, "odonto")).sagas) == 2


async def test_what_left_no_integration_behind_is_found_by_the_clinics_name(pool: Pool) -> None:
    parked = await begun(pool, "Odonto Vida", status="failed", command_id="order 66")
    await begun(pool, "Odonto Lar", status="compensated")
    for text in ("vida odo", str(parked)[:13], f"…{str(parked)[-8:]}", "order"):
        assert [saga.saga_id for saga in (await find(pool, text)).sagas] == [parked], text
    both = (await find(pool, "odonto")).sagas
    assert [saga.status for saga in both] == ["failed", "compensated"], "the parked one comes first"


@pytest.mark.parametrize("sort", ["newest", "oldest", "name", "-name"])
async def test_pages_hang_together_in_both_directions(pool: Pool, sort: Sort) -> None:
    for number in range(7):
        await integration(pool, f"Clinic {number % 3}")
    for wanted in (Wanted(sort=sort), Wanted(search="clinic", sort=sort)):
        whole = [one.id for one in (await list_integrations(pool, wanted)).integrations]
        first = await list_integrations(pool, wanted, limit=3)
        assert first.newer is None
        assert first.count == 7 or not wanted.search
        second = await list_integrations(pool, wanted, limit=3, cursor=first.older)
        third = await list_integrations(pool, wanted, limit=3, cursor=second.older)
        assert third.older is None
        pages = [[one.id for one in page.integrations] for page in (first, second, third)]
        assert [*pages[0], *pages[1], *pages[2]] == whole
        back = await list_integrations(pool, wanted, limit=3, cursor=third.newer)
        assert [one.id for one in back.integrations] == pages[1]
        start = await list_integrations(pool, wanted, limit=3, cursor=back.newer)
        assert [one.id for one in start.integrations] == pages[0]
        assert start.newer is None


async def test_a_cursor_of_another_order_is_refused(pool: Pool) -> None:
    for number in range(3):
        await integration(pool, f"Clinic {number}")
    page = await list_integrations(pool, Wanted(sort="name"), limit=1)
    for cursor, sort in ((page.older, "newest"), ("nonsense", "name"), ("W10", "newest")):
        with pytest.raises(BadCursor):
            await list_integrations(pool, Wanted(sort=sort), cursor=cursor)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["a\0b", "\ud800"])
async def test_a_cursor_with_a_text_that_postgres_can_not_take_is_refused(
    pool: Pool, key: str
) -> None:
    cursor = urlsafe_b64encode(json.dumps(["name", False, key, str(ID)]).encode()).decode()
    with pytest.raises(BadCursor):
        await list_integrations(pool, Wanted(sort="name"), cursor=cursor)


NEEDY = ["as its row says", "drifted", "gone", "parked"]


async def in_need(pool: Pool) -> None:
    """Those of ``NEEDY``, one of each source of need and two of two, among others."""
    await integration(pool, "fine")
    for name, state in (("gone", "missing"), ("webhook lost", "incomplete"), ("new", "pending")):
        await connection(pool, await integration(pool, name), state)
    await integration(pool, "as its row says", status="disconnected")
    await connection(pool, await integration(pool, "checked", status="disconnected"), "connected")
    await connection(pool, await integration(pool, "going", status="deleting"), "down")
    drifted, stuck, off = [
        await integration(pool, name) for name in ("drifted", "parked", "turned off")
    ]
    for one in (drifted, stuck, off):
        await connection(pool, one, "down")
    await pool.execute(
        "UPDATE healthcare.integrations SET enabled = false WHERE id = ANY($1)", [drifted, off]
    )
    await pool.execute(
        "INSERT INTO evosaga.sightings (what, instance_name) VALUES ('missing', $1)",
        f"wa-{drifted}",
    )
    await begun(pool, "parked", status="failed", instance_name=f"wa-{stuck}")


async def test_what_needs_attention_is_what_the_first_page_counts(pool: Pool) -> None:
    await in_need(pool)
    page = await list_integrations(pool, Wanted(attention=True, sort="name"))
    assert [one.name for one in page.integrations] == NEEDY
    assert (page.count, page.more) == (4, False)
    for name in NEEDY:
        assert await found(pool, name, attention=True) == [name]
    assert await found(pool, "webhook lost", attention=True) == []


@pytest.mark.parametrize("sort", ["newest", "oldest", "name", "-name"])
@pytest.mark.parametrize("counted", [10_000, 2])
async def test_what_needs_attention_is_paged_alike_when_it_is_more_than_is_counted(
    pool: Pool, sort: Sort, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evosaga.orchestrator.whatsapp.integrations.search.COUNTED", counted)
    await in_need(pool)
    wanted = Wanted(attention=True, sort=sort)
    first = await list_integrations(pool, wanted, limit=3)
    assert (first.count, first.more) == (min(counted, 4), counted < 4)
    second = await list_integrations(pool, wanted, limit=3, cursor=first.older)
    back = await list_integrations(pool, wanted, limit=3, cursor=second.newer)
    assert back.integrations == first.integrations
    assert (back.newer, second.older) == (None, None)
    order = ["gone", "as its row says", "drifted", "parked"] if "name" not in sort else NEEDY
    if sort in ("newest", "-name"):
        order = order[::-1]
    assert [one.name for one in (*first.integrations, *second.integrations)] == order


async def test_a_look_at_very_many_rows_reads_those_in_need_once(pool: Pool) -> None:
    rows = await pool.fetch(f"EXPLAIN SELECT id FROM healthcare.integrations AS row WHERE {NEEDS}")
    conditions = "\n".join(row[0] for row in rows)
    assert conditions.count("hashed SubPlan") == 2, conditions


async def test_filters_narrow(pool: Pool) -> None:
    await integration(pool, "one", status="pending", config={"server": "south"})
    await integration(pool, "two", status="connected")

    async def names(**wanted: Any) -> list[str | None]:
        return [one.name for one in (await list_integrations(pool, Wanted(**wanted))).integrations]

    assert await names(status="pending") == ["one"]
    assert await names(server="default") == ["two"]
    assert await names(server="south", status="connected") == []


@pytest.mark.parametrize("sort", ["newest", "-name"])
async def test_what_is_too_much_to_count_is_paged_through_all_the_same(
    pool: Pool, sort: Sort
) -> None:
    await pool.execute(MANY, COUNTED + 100)
    wanted = Wanted(search="clinic", sort=sort)
    first = await list_integrations(pool, wanted, limit=400)
    assert (first.count, first.more) == (COUNTED, True)
    pages = [first]
    while (cursor := pages[-1].older) is not None:
        pages.append(await list_integrations(pool, wanted, limit=400, cursor=cursor))
    names = [one.name for page in pages for one in page.integrations]
    assert len(set(names)) == len(names) == COUNTED + 100
    if sort == "-name":
        assert names == sorted(names, key=str, reverse=True)
    back = await list_integrations(pool, wanted, limit=400, cursor=pages[1].newer)
    assert back.integrations == first.integrations


@pytest.mark.long
async def test_a_search_among_many_reads_the_index(pool: Pool) -> None:
    await pool.execute(MANY, 20_000)
    await integration(pool, "Odonto Vida", id_=ID, whatsapp_number="5511987654321")
    await pool.execute("ANALYZE healthcare.integrations")
    for text in ("odo", "vid", "0197a3c4-5d", "6f3b2c11", "98765-4321"):
        plan = await explained(pool, text)
        assert "integrations_by_words" in plan, plan
        assert "Seq Scan on integrations" not in plan
        assert await found(pool, text) == ["Odonto Vida"]
    first = await list_integrations(pool, Wanted(), limit=50)
    assert (first.count, first.more) == (COUNTED, True)


MANY: Final = """
INSERT INTO healthcare.integrations (id, organization_id, config, whatsapp_number)
SELECT id, gen_random_uuid(), jsonb_build_object('instance_name', 'wa-' || id, 'name',
    'Clinic ' || n), '55119' || lpad(n::text, 8, '0')
FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, $1::int) AS n) AS made
"""


async def explained(pool: Pool, text: str) -> str:
    """The plan of what a search does first."""
    rows: Sequence[asyncpg.Record] = await pool.fetch(
        f"EXPLAIN SELECT id FROM healthcare.integrations AS row "
        f"WHERE ({INTEGRATION_WORDS}) @@ $1::text::tsquery LIMIT 10001",
        words.query(text),
    )
    return "\n".join(row[0] for row in rows)


async def connection(pool: Pool, integration_id: uuid.UUID, state: str) -> None:
    await pool.execute(
        "INSERT INTO evosaga.connections (integration_id, state) VALUES ($1, $2)",
        integration_id,
        state,
    )


async def begun(pool: Pool, name: str, **columns: Any) -> uuid.UUID:
    """A saga that was asked for by that name: its row and the event that began it."""
    id_ = uuid.uuid4()
    row = {"status": "completed", "organization_id": None, "instance_name": f"wa-{id_}"}
    row |= {"command_id": str(id_)} | columns
    await pool.execute(
        "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, "
        "command_hash, correlation_id, next_sequence, organization_id, instance_name) VALUES "
        "($1::uuid, 'create-integration', 1, $2, $1::uuid::text, $3, 'h', 'c', 1, $4, $5)",
        id_,
        row["status"],
        row["command_id"],
        row["organization_id"],
        row["instance_name"],
    )
    data = {"input": {"name": name}, "instance_name": row["instance_name"]}
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "VALUES ($1, 0, 'saga.started', $2, 'c')",
        id_,
        json.dumps(data),
    )
    return id_
