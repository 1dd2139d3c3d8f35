"""What an instance lacks, what of it an answer vouches for, and what is nobody's but ours."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

import evosaga.sagas.whatsapp.steps.instance_removal
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected, Sighting, Unknown
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.completeness import SETTINGS, webhook_lacks
from evosaga.sagas.whatsapp.evolution.models import listed_instance, webhook
from evosaga.sagas.whatsapp.evolution.payload import foreign_webhook, own_webhook
from evosaga.sagas.whatsapp.evolution.tls import trusted
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Context, Services
from evosaga.sagas.whatsapp.steps.evolution_instance import create_instance, probe_instance
from evosaga.sagas.whatsapp.steps.instance_removal import delete_instance, remove_instance
from tests.conftest import API_KEY, SECRET
from tests.support.waiting import eventually

PUBLIC = "http://192.0.2.1:9"
KEYS = KeyRing([SECRET])
ID = uuid.UUID("0197f3a0-0000-7000-8000-0000000000c1")
OURS = own_webhook("https://evosaga.example/x", KEYS, ID, KEYS.current)
THEIRS = foreign_webhook("https://elsewhere.example/hook")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_VANISH_SECONDS", 0.3)
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_REMOVAL_SECONDS", 0.1)


@pytest.fixture
async def evolution() -> AsyncIterator[SimulatedEvolution]:
    async with SimulatedEvolution(api_key=API_KEY, pace=0.05, webhook_attempts=1) as server:
        yield server


@pytest.fixture
async def services(redis: Redis, evolution: SimulatedEvolution) -> AsyncIterator[Services]:
    api = EvolutionApi(evolution.url, API_KEY, timeout=0.5)
    async with api, httpx.AsyncClient(trust_env=False, verify=trusted()) as http:
        yield Services({"default": api}, redis, http, KEYS, public_url=PUBLIC, quiet_seconds=0.2)


def attempt(services: Services, **chosen: Any) -> Context:
    """The first attempt of a create; its name is derived unless one is chosen."""
    saga_id = uuid.uuid4()
    wanted = {"organization_id": uuid.uuid4(), "clinic_id": uuid.uuid4(), "name": "Sol"}
    return Context(
        saga_id=saga_id,
        input=CreateIntegration(**wanted, channel="EVOLUTION", **chosen),
        services=services,
        facts={
            "instance_name": chosen.get("instance_name", f"wa-{saga_id}"),
            "created_by": str(saga_id),
            "key_id": services.keys.current,
        },
    )


@pytest.fixture
def ctx(services: Services) -> Context:
    return attempt(services)


def name(ctx: Context) -> str:
    return str(ctx.facts["instance_name"])


def again(ctx: Context, number: int = 2, code: str | None = None) -> Context:
    return replace(ctx, in_doubt=True, attempt=number, last_code=code)


def operations(evolution: SimulatedEvolution) -> list[str | None]:
    return [entry.operation for entry in evolution.journal.requests()]


def right(wanted: Any, **changes: Any) -> dict[str, Any]:
    """A webhook's row as Evolution shows it."""
    return {"id": "c1", **wanted, "enabled": True, "webhookByEvents": False, **changes}


@pytest.mark.parametrize(
    ("found", "wanted", "lacks"),
    [
        (right(OURS), OURS, None),
        (right(OURS, events=[*OURS["events"], "CALL"]), OURS, None),
        (right(THEIRS), THEIRS, None),
        (right(THEIRS, headers=None), THEIRS, None),
        (right(THEIRS, headers={"Authorization": "theirs"}), THEIRS, None),
        (None, OURS, "it has no webhook"),
        ([], OURS, "it has no webhook"),
        (right(OURS, enabled=False), OURS, "its webhook is switched off"),
        ({}, OURS, "its webhook is switched off"),
        (right(OURS, url="https://evosaga.example/y"), OURS, "its webhook leads elsewhere"),
        (right(OURS, events=None), OURS, "its webhook is not told of QRCODE_UPDATED, "),
        (right(OURS, events=[]), OURS, "its webhook is not told of QRCODE_UPDATED, "),
        (right(OURS, events=[*OURS["events"], "REMOVE_INSTANCE"]), OURS, "its webhook is told of"),
        (right(OURS, headers=None), OURS, "its webhook shows no token, or another one"),
        (right(OURS, headers={"X-Webhook-Token": "x"}), OURS, "its webhook shows no token, or"),
        (right(OURS, headers=["odd"]), OURS, "its webhook shows no token, or another one"),
    ],
)
def test_what_a_webhook_lacks_is_said_without_its_token(
    found: Any, wanted: dict[str, Any], lacks: str | None
) -> None:
    said = webhook_lacks(webhook(found), wanted)
    assert said == lacks if lacks is None else said is not None and said.startswith(lacks)
    assert OURS["headers"]["X-Webhook-Token"] not in str(said)


def test_a_token_made_under_a_key_of_before_is_as_good() -> None:
    older = KeyRing(["o" * 32])
    found = right(own_webhook(OURS["url"], older, ID, older.current))
    assert webhook_lacks(webhook(found), OURS) is not None
    assert webhook_lacks(webhook(found), OURS, older.webhook_tokens(ID)) is None


def test_only_a_list_that_shows_settings_can_lack_them() -> None:
    shown: list[dict[str, Any]] = [{"Setting": None}, {"Setting": dict(SETTINGS)}, {}]
    listed = [listed_instance({"name": "a", **one}) for one in shown]
    assert [one and one.has_settings for one in listed] == [False, True, True]


async def test_a_first_create_of_a_derived_name_is_looked_at_once(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    assert isinstance(await create_instance(ctx), Done)
    assert operations(evolution) == ["create", "connectionState"]


@pytest.mark.parametrize(
    ("mode", "parameters"),
    [
        ("5xx_after", {}),
        ("html502", {}),
        ("cut", {"bytes": 0}),
        ("cut", {"bytes": 100}),
        ("trunc", {}),
        ("wrong_body", {}),
        ("wrong_body", {"body": {"instance": {"instanceName": "other"}}}),
        ("hang_after", {}),
    ],
)
async def test_any_other_answer_vouches_for_nothing_but_the_instances_own_row(
    ctx: Context, evolution: SimulatedEvolution, mode: str, parameters: dict[str, Any]
) -> None:
    evolution.arm(mode, operation="create", **parameters)
    assert isinstance(await create_instance(ctx), Done)
    assert "webhook_find" in operations(evolution)


async def lost(ctx: Context, evolution: SimulatedEvolution, *rows: str) -> Context:
    """A create whose answer was lost, and these rows with it; the attempt that follows."""
    await create_instance(ctx)
    for row in rows:
        evolution.lose(name(ctx), row)
    return again(ctx)


@pytest.mark.parametrize(
    ("rows", "mended"),
    [
        ((), None),
        (("webhook",), "it has no webhook"),
        (("settings",), "it has no settings"),
        (("webhook", "settings"), "it has no webhook and it has no settings"),
    ],
)
async def test_what_is_adopted_is_made_whole_first(
    ctx: Context, evolution: SimulatedEvolution, rows: tuple[str, ...], mended: str | None
) -> None:
    outcome = await create_instance(await lost(ctx, evolution, *rows))
    assert isinstance(outcome, Done)
    assert outcome.result.get("mended") == mended
    assert outcome.result["adopted"] is True
    row = evolution._world.rows[name(ctx)]
    assert row.webhook is not None
    assert row.webhook["url"] == f"{PUBLIC}/webhooks/evolution/{name(ctx)}"
    assert row.setting is not None
    assert {"webhook_set", "settings_set"} & set(operations(evolution)) == {
        {"webhook": "webhook_set", "settings": "settings_set"}[row] for row in rows
    }


@pytest.mark.parametrize(
    ("mode", "parameters", "operation", "says"),
    [
        ("5xx_before", {}, "webhook_find", "Held evolution_unavailable"),
        ("5xx_before", {"status": 503}, "webhook_find", "Held evolution_unavailable"),
        ("hang_before", {}, "webhook_find", "Held evolution_unavailable"),
        ("429", {"retry_after": 7}, "webhook_find", "Held evolution_busy"),
        ("401", {}, "webhook_find", "Held evolution_unavailable"),
        ("licence", {}, "webhook_find", "Held evolution_misconfigured"),
        ("html502", {"status": 200}, "webhook_find", "Held evolution_misconfigured"),
        ("reject", {"status": 404}, "webhook_find", "Unknown instance_incomplete"),
        ("wrong_body", {"body": [1]}, "webhook_find", "Held evolution_misconfigured"),
        ("5xx_before", {}, "webhook_set", "Unknown instance_incomplete"),
        ("5xx_before", {"status": 503}, "webhook_set", "Held evolution_unavailable"),
        ("reject", {}, "webhook_set", "Unknown instance_incomplete"),
        ("429", {"retry_after": 7}, "settings_set", "Held evolution_busy"),
        ("5xx_before", {}, "settings_set", "Unknown instance_incomplete"),
    ],
)
async def test_a_create_says_that_it_is_done_only_when_it_knows_that_all_is_there(
    ctx: Context,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
    operation: str,
    says: str,
) -> None:
    second = await lost(ctx, evolution, "webhook", "settings")
    evolution.arm(mode, operation=operation, **parameters)
    outcome = await create_instance(second)
    assert isinstance(outcome, Held | Unknown)
    assert f"{type(outcome).__name__} {outcome.code}" == says
    assert isinstance(outcome, Unknown) or outcome.in_doubt, "the instance is there meanwhile"


async def test_a_set_that_is_answered_and_not_done_is_noticed(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    second = await lost(ctx, evolution, "webhook")
    evolution.arm("ok200_error", operation="webhook_set")
    outcome = await create_instance(second)
    assert isinstance(outcome, Unknown)
    assert outcome.code == "instance_incomplete"


@pytest.mark.parametrize("row", ["webhook", "settings"])
async def test_a_probe_finds_only_half_of_it_where_a_row_is_missing(
    ctx: Context, evolution: SimulatedEvolution, row: str
) -> None:
    await create_instance(ctx)
    assert (await probe_instance(ctx)).sighting is Sighting.THERE
    evolution.lose(name(ctx), row)
    found = await probe_instance(ctx)
    assert found.sighting is Sighting.HALF
    assert f"it has no {row}" in found.evidence


# --- only in memory -------------------------------------------------------------------------------


def deletes(evolution: SimulatedEvolution) -> list[str | None]:
    return [entry.key_kind for entry in evolution.journal.requests("delete")]


def kind(outcome: Outcome) -> str:
    if isinstance(outcome, Done):
        return f"Done {outcome.result.get('note', '')}".strip()
    return f"{type(outcome).__name__} {outcome.code}"


@pytest.mark.parametrize("step", [remove_instance, delete_instance])
async def test_what_is_in_memory_alone_under_a_derived_name_is_removed_with_the_global_key(
    ctx: Context, evolution: SimulatedEvolution, step: Any
) -> None:
    await create_instance(ctx)
    evolution.half_delete(name(ctx), keep="memory")
    assert kind(await step(replace(ctx, was_done=True))) == "Done removed"
    assert not evolution.live()
    assert deletes(evolution) == ["global"]


@pytest.mark.parametrize("step", [remove_instance, delete_instance])
async def test_under_a_chosen_name_it_is_left_to_a_person(
    services: Services, evolution: SimulatedEvolution, step: Any
) -> None:
    ctx = attempt(services, instance_name="clinica-sol")
    await create_instance(ctx)
    evolution.half_delete("clinica-sol", keep="memory")
    outcome = await step(replace(ctx, was_done=True))
    assert kind(outcome) == "Unknown instance_remains"
    assert "restart Evolution" in outcome.message
    assert "clinica-sol" in evolution.live()
    assert "global" not in deletes(evolution)


async def test_a_name_that_was_chosen_is_chosen_even_if_it_looks_derived(
    services: Services, evolution: SimulatedEvolution
) -> None:
    ctx = attempt(services)
    chosen = ctx.input.model_copy(update={"instance_name": name(ctx)})
    await create_instance(ctx)
    evolution.half_delete(name(ctx), keep="memory")
    outcome = await remove_instance(replace(ctx, input=chosen, was_done=True))
    assert kind(outcome) == "Unknown instance_remains"
    assert "global" not in deletes(evolution)


@pytest.mark.parametrize("there", ["a stranger", "a row that comes back"])
async def test_as_long_as_there_is_a_row_of_that_name_the_global_key_is_not_used(
    ctx: Context,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
    there: str,
) -> None:
    await create_instance(ctx)
    evolution.half_delete(name(ctx), keep="memory")
    honest, mine = (
        EvolutionApi.instances,
        ctx.services.keys.instance_token(ctx.saga_id, KEYS.current),
    )
    to_come = [there]

    async def first(self: EvolutionApi) -> Any:
        """It takes the name after the look, and before the list is read."""
        match to_come.pop() if to_come else None:
            case "a stranger":
                evolution.foreign(name(ctx))
            case "a row that comes back":
                evolution.put(name(ctx), token=mine)
        return await honest(self)

    monkeypatch.setattr(EvolutionApi, "instances", first)
    outcome = await remove_instance(replace(ctx, was_done=True))
    assert "global" not in deletes(evolution)
    assert (name(ctx) in evolution.rows()) == (there == "a stranger")
    assert isinstance(outcome, Done) or there == "a stranger"


async def test_what_was_in_memory_before_a_first_create_is_not_ours(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    evolution.foreign(name(ctx))
    evolution.half_delete(name(ctx), keep="memory")
    outcome = await create_instance(ctx)
    assert isinstance(outcome, Rejected), "so nothing is tried again, and nothing undone"
    assert outcome.code == "name_taken"
    assert name(ctx) in evolution.live()
    assert deletes(evolution) == []


async def test_a_create_removes_what_its_earlier_try_left_in_memory_and_waits_before_the_next(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    evolution.arm("db_lost", after="nothing")
    assert kind(await create_instance(ctx)) == "Unknown refused_and_cleaning_up"
    second = await create_instance(again(ctx))
    assert kind(second) == "Held half_removed"
    assert isinstance(second, Held)
    assert second.in_doubt
    assert deletes(evolution) == ["global"]
    young = replace(again(ctx, code="half_removed"), doubt_age=0.1)
    assert kind(await create_instance(young)) == "Held half_removed"
    assert len(evolution.journal.requests("create")) == 1, "a removal by name may be under way"
    await eventually(lambda: not evolution.live())
    quiet = replace(again(ctx, code="half_removed"), doubt_age=1.0)
    assert kind(await create_instance(quiet)) == "Done"
    assert name(ctx) in evolution.rows()


async def test_a_half_that_does_not_go_costs_attempts_in_the_end(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    await create_instance(ctx)
    evolution.half_delete(name(ctx), keep="memory")
    evolution.arm("delete_async", operation="delete", seconds=60, times=None)
    assert kind(await create_instance(again(ctx))) == "Held half_removed"
    stuck = replace(again(ctx, code="half_removed"), doubt_age=1.0)
    assert kind(await create_instance(stuck)) == "Unknown instance_half_made"


async def test_a_row_that_a_starting_server_has_not_loaded_is_waited_for(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    await create_instance(ctx)
    evolution.half_delete(name(ctx), keep="row")
    assert kind(await create_instance(replace(again(ctx), doubt_age=0.5))) == (
        "Held instance_half_made"
    )
    old = replace(again(ctx), doubt_age=60.0)
    assert kind(await create_instance(old)) == "Unknown instance_half_made"
