"""What the steps on Evolution say, fault by fault, against the simulated server."""

import asyncio
import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.sagas.whatsapp.steps.instance_removal
from evosaga.orchestrator.config.settings import load_settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected, Sighting, Unknown
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION, CreateIntegration
from evosaga.sagas.whatsapp.evolution.client import Answer, EvolutionApi
from evosaga.sagas.whatsapp.evolution.partial import provoke_clean_up
from evosaga.sagas.whatsapp.evolution.payload import payload
from evosaga.sagas.whatsapp.ownership import fingerprint
from evosaga.sagas.whatsapp.services import Context, Services
from evosaga.sagas.whatsapp.steps.evolution_instance import create_instance
from evosaga.sagas.whatsapp.steps.instance_removal import (
    delete_instance,
    probe_removal,
    remove_instance,
)
from evosaga.sagas.whatsapp.steps.pairing_code import ask_for_qr
from tests.conftest import API_KEY
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_VANISH_SECONDS", 0.3)
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_REMOVAL_SECONDS", 0.1)


@pytest.fixture
def ctx(services: Services) -> Context:
    """The first attempt at an instance ``ours``."""
    saga_id = uuid.uuid4()
    return Context(
        saga_id=saga_id,
        input=CreateIntegration(
            organization_id=uuid.uuid4(), clinic_id=uuid.uuid4(), name="Sol", channel="EVOLUTION"
        ),
        services=services,
        facts={
            "instance_name": "ours",
            "created_by": str(saga_id),
            "key_id": services.keys.current,
        },
    )


def token(ctx: Context) -> str:
    return ctx.services.keys.instance_token(ctx.saga_id, ctx.services.keys.current)


def kind(outcome: Outcome) -> str:
    """``Held evolution_busy``, ``Done removed``: the outcome and its code or note."""
    if isinstance(outcome, Done):
        return f"Done {outcome.result.get('note', '')}".strip()
    return f"{type(outcome).__name__} {outcome.code}"


def deletes_by_key(evolution: SimulatedEvolution) -> set[str | None]:
    return {entry.key_kind for entry in evolution.journal.requests("delete")}


CREATES: list[tuple[str, dict[str, Any], str, bool]] = [
    # what goes wrong, with what, what the step says, whether the instance is there then
    ("5xx_before", {}, "Unknown evolution_unclear", False),
    ("5xx_before", {"status": 503}, "Held evolution_unavailable", False),
    ("reject", {"message": "token is required"}, "Rejected evolution_refused", False),
    ("reject", {"message": "what went wrong"}, "Unknown refused_and_cleaning_up", False),
    ("401", {}, "Held evolution_misconfigured", False),
    ("reject", {"status": 404, "message": "Cannot POST"}, "Held evolution_misconfigured", False),
    ("redirect", {}, "Held evolution_misconfigured", False),
    ("licence", {}, "Held evolution_misconfigured", False),
    ("429", {"retry_after": 7}, "Held evolution_busy", False),
    ("ok200_error", {}, "Unknown evolution_unclear", False),
    ("cors", {}, "Held evolution_misconfigured", False),
    ("no_key", {}, "Held evolution_misconfigured", False),
    *(
        ("proxy", {"status": status, "body": body}, "Held evolution_misconfigured", False)
        for status, body in (
            (200, "html"),
            (200, "json"),
            (201, "text"),
            (204, "empty"),
            (400, "html"),
            (401, "json"),
            (403, "html"),
            (403, "json"),
            (404, "text"),
            (405, "empty"),
            (407, "html"),
            (451, "html"),
            (511, "html"),
        )
    ),
    ("proxy", {"status": 502}, "Unknown evolution_unclear", False),
    ("proxy", {"status": 503}, "Held evolution_unavailable", False),
    ("proxy", {"status": 504}, "Unknown evolution_unclear", False),
    ("proxy", {"status": 408}, "Unknown evolution_unclear", False),
    ("proxy", {"status": 429, "retry_after": "7"}, "Held evolution_busy", False),
    ("refuse", {}, "Unknown evolution_unclear", False),
    ("hang_before", {}, "Unknown evolution_unclear", False),
    ("late", {"seconds": 30}, "Unknown evolution_unclear", False),
    ("foreign", {}, "Rejected name_taken", True),
    ("slow", {"seconds": 0.1}, "Done", True),
    ("5xx_after", {}, "Done", True),
    ("5xx_after", {"status": 503}, "Done", True),
    ("html502", {}, "Done", True),
    ("html502", {"status": 200}, "Held evolution_misconfigured", True),
    ("cut", {"bytes": 0}, "Done", True),
    ("cut", {"bytes": 100}, "Done", True),
    ("trunc", {}, "Done", True),
    ("huge", {}, "Done", True),
    ("wrong_body", {"body": {"instance": {"instanceName": "other"}}}, "Done", True),
    ("hang_after", {}, "Done", True),
    ("create_race", {"winner": "theirs"}, "Unknown refused_and_cleaning_up", True),
]


@pytest.mark.parametrize(
    ("mode", "parameters", "says", "there"),
    CREATES,
    ids=[f"{mode}-{'-'.join(map(str, p.values()))[:20]}" for mode, p, *_ in CREATES],
)
async def test_create_says_what_is_known_and_no_more(
    ctx: Context,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
    says: str,
    there: bool,
) -> None:
    evolution.arm(mode, operation="create", **parameters)
    outcome = await create_instance(ctx)
    assert kind(outcome) == says
    assert ("ours" in evolution.rows()) == there or mode == "create_race"
    assert evolution.journal.requests("delete") == []
    assert API_KEY not in repr(outcome)
    assert token(ctx) not in repr(outcome)
    if says == "Done":
        assert outcome == Done({"token_hash": fingerprint(token(ctx))})
        assert evolution.live()["ours"].token_hash == fingerprint(token(ctx))
    if isinstance(outcome, Held) and outcome.code == "evolution_busy":
        assert outcome.retry_after == 7
    if says == "Held evolution_unavailable":
        assert isinstance(outcome, Held)
        assert outcome.in_doubt


@pytest.mark.parametrize(
    ("look", "says"),
    [
        ("connectionState", "Unknown evolution_unclear"),
        ("fetch", "Done"),  # not asked when memory has it
    ],
)
async def test_a_201_is_believed_only_when_a_look_confirms_it(
    ctx: Context, evolution: SimulatedEvolution, look: str, says: str
) -> None:
    evolution.arm("5xx_before", operation=look)
    assert kind(await create_instance(ctx)) == says


@pytest.mark.fault("c1")
async def test_a_closed_door_proves_that_nothing_was_sent(ctx: Context) -> None:
    async with EvolutionApi("http://127.0.0.1:9", API_KEY, timeout=1) as nobody:
        nowhere = replace(ctx, services=replace(ctx.services, servers={"default": nobody}))
        for step in (create_instance, delete_instance, remove_instance):
            outcome = await step(nowhere)
            assert isinstance(outcome, Held), outcome
            assert not outcome.in_doubt


async def in_doubt(ctx: Context, evolution: SimulatedEvolution, there: str) -> Context:
    """A second attempt, when this is what the first has left behind."""
    if there != "nothing":
        await create_instance(ctx)
    match there:
        case "foreign":
            evolution.foreign("ours")
        case "row" | "memory":
            evolution.half_delete("ours", keep=there)
        case "blind":
            evolution.arm("5xx_before", operation="connectionState", times=None)
        case "blind-database":
            evolution.arm("db_down", times=None)
    return replace(ctx, in_doubt=True, attempt=2)


@pytest.mark.fault("c3", "c8")
@pytest.mark.parametrize(
    ("there", "says", "creates"),
    [
        ("nothing", "Done", 1),
        ("mine", "Done", 1),
        ("foreign", "Rejected name_taken", 1),
        ("row", "Unknown instance_half_made", 1),
        ("memory", "Unknown instance_half_made", 1),
        ("blind", "Held evolution_unavailable", 1),
        ("blind-database", "Held evolution_unavailable", 1),
    ],
)
async def test_an_attempt_in_doubt_looks_before_it_acts(
    ctx: Context, evolution: SimulatedEvolution, there: str, says: str, creates: int
) -> None:
    outcome = await create_instance(await in_doubt(ctx, evolution, there))
    assert kind(outcome) == says
    assert isinstance(outcome, Done) is (there in ("nothing", "mine"))
    assert len(evolution.journal.requests("create")) == creates
    assert isinstance(outcome, Done) is False or outcome == Done(
        {"token_hash": fingerprint(token(ctx))} | ({"adopted": True} if there == "mine" else {})
    )


@pytest.mark.parametrize(
    ("step", "there", "says", "left"),
    [
        (remove_instance, "mine", "Done removed", False),
        (delete_instance, "mine", "Done removed", False),
        (remove_instance, "foreign", "Done not_ours", True),
        (delete_instance, "foreign", "Done not_ours", True),
        (delete_instance, "row", "Unknown instance_remains", True),
        (remove_instance, "memory", "Unknown instance_remains", True),
        (remove_instance, "blind", "Held evolution_unavailable", True),
        (delete_instance, "blind-database", "Held evolution_unavailable", True),
    ],
)
async def test_a_removal_touches_only_what_is_ours(
    ctx: Context, evolution: SimulatedEvolution, step: Any, there: str, says: str, left: bool
) -> None:
    await in_doubt(ctx, evolution, there)
    assert kind(await step(replace(ctx, was_done=True))) == says
    assert ("ours" in evolution.rows() or "ours" in evolution.live()) == left
    assert deletes_by_key(evolution) <= {"instance"}


@pytest.mark.fault("d1", "d3", "d4")
@pytest.mark.parametrize(
    ("mode", "parameters", "says"),
    [
        ("delete_async", {"seconds": 0.15}, "Done removed"),
        ("delete_async", {"seconds": 30}, "Unknown instance_remains"),
        ("half_deleted", {}, "Unknown instance_remains"),
        ("delete_400", {}, "Done removed"),
        ("5xx_before", {}, "Unknown instance_remains"),
        ("ok200_error", {}, "Unknown instance_remains"),
        ("429", {"retry_after": 7}, "Held evolution_busy"),
        ("5xx_after", {}, "Done removed"),
        ("html502", {}, "Done removed"),
        ("cut", {"bytes": 0}, "Done removed"),
        ("trunc", {}, "Done removed"),
        ("hang_after", {}, "Done removed"),
        ("drop", {}, "Done removed"),
        ("foreign", {}, "Unknown instance_remains"),
    ],
)
async def test_a_delete_is_done_when_the_instance_is_seen_to_be_gone(
    ctx: Context,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
    says: str,
) -> None:
    given = ctx
    if mode == "delete_400":  # a quirk of live Baileys instances only
        given = replace(ctx, input=ctx.input.model_copy(update={"channel": "WHATSAPP-BAILEYS"}))
    await create_instance(given)
    if mode == "delete_400":
        await ask_for_qr(given)
    evolution.arm(mode, operation="delete", **parameters)
    outcome = await remove_instance(replace(given, was_done=True))
    assert kind(outcome) == says
    gone = "ours" not in evolution.rows() and "ours" not in evolution.live()
    assert gone == isinstance(outcome, Done)
    assert deletes_by_key(evolution) <= {"instance", "wrong"}


@pytest.mark.fault("c6")
@pytest.mark.parametrize("doubtful", [True, False], ids=["sent twice", "sent once"])
async def test_a_201_is_looked_at_twice_when_an_earlier_try_may_land_beside_it(
    ctx: Context, evolution: SimulatedEvolution, doubtful: bool
) -> None:
    """The first POST lands now, can't insert its row, and its clean-up removes ours by name."""
    services = evolution._world
    if not doubtful:  # there the one look comes first, on however busy a machine
        services.settings = replace(services.settings, pace=5.0)
    evolution.arm("create_race", operation="create", winner="ours")
    outcome = await create_instance(replace(ctx, in_doubt=doubtful))
    assert isinstance(outcome, Done) is not doubtful
    if doubtful:
        assert kind(outcome) == "Unknown evolution_unclear"
        again = await create_instance(replace(ctx, in_doubt=True, attempt=3))
        assert kind(again) == "Done"
        assert "ours" in evolution.live()


@pytest.mark.fault("c12")
async def test_a_half_that_is_left_of_a_race_is_neither_adopted_nor_deleted(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    evolution.arm("create_race", operation="create", winner="half")
    outcome = await create_instance(replace(ctx, in_doubt=True))
    assert kind(outcome) == "Unknown evolution_unclear"
    again = await create_instance(replace(ctx, in_doubt=True, attempt=3))
    assert kind(again) == "Unknown instance_half_made"
    assert len(evolution.journal.requests("create")) == 1
    assert evolution.journal.requests("delete") == []


@pytest.mark.fault("d5")
@pytest.mark.parametrize("step", [remove_instance, delete_instance])
async def test_a_row_of_ours_that_no_delete_finds_is_removed_by_a_create_that_must_fail(
    ctx: Context, evolution: SimulatedEvolution, step: Any
) -> None:
    """With SAVE_INSTANCES Evolution's DELETE says 404 to it for ever."""
    await in_doubt(ctx, evolution, "row")
    for attempt in (1, 2, 3):
        early = await step(replace(ctx, attempt=attempt, was_done=True))
        assert kind(early) == "Unknown instance_remains"
    assert len(evolution.journal.requests("create")) == 1, "not while it may be a passing sight"
    assert kind(await step(replace(ctx, attempt=4, was_done=True))) == "Done removed"
    assert not evolution.rows()
    assert not evolution.live()


async def test_what_evolution_says_is_told_without_what_a_terminal_would_obey(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    evolution.arm("reject", operation="create", message="token is required\x1b[2J\n\u2028\x9b31m")
    outcome = await create_instance(ctx)
    assert isinstance(outcome, Rejected)
    assert outcome.message.isprintable()
    assert "token is required" in outcome.message


@pytest.fixture
def gone_by_then(monkeypatch: pytest.MonkeyPatch, evolution: SimulatedEvolution) -> None:
    """The row goes by itself in the moment before the create that should have removed it."""

    async def late(ctx: Context, name: str, token: str) -> Answer:
        evolution.drop(name)
        return await provoke_clean_up(ctx, name, token)

    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "provoke_clean_up", late)


@pytest.mark.fault("d5")
@pytest.mark.usefixtures("gone_by_then")
@pytest.mark.parametrize("step", [remove_instance, delete_instance])
async def test_a_create_that_should_have_failed_and_lands_is_removed_in_the_same_attempt(
    ctx: Context, evolution: SimulatedEvolution, step: Any
) -> None:
    await in_doubt(ctx, evolution, "row")
    outcome = await step(replace(ctx, attempt=9, was_done=True))
    assert kind(outcome) == "Done removed"
    assert [entry.applied for entry in evolution.journal.requests("create")][-1] == "created"
    assert not evolution.rows()
    assert not evolution.live()
    assert deletes_by_key(evolution) == {"instance"}


@pytest.mark.fault("d5")
@pytest.mark.usefixtures("gone_by_then")
@pytest.mark.parametrize("step", [remove_instance, delete_instance])
async def test_a_create_that_should_have_failed_and_says_nothing_is_given_a_quiet_time(
    ctx: Context, evolution: SimulatedEvolution, step: Any
) -> None:
    await in_doubt(ctx, evolution, "row")
    evolution.arm("late", operation="create", seconds=0.5)
    outcome = await step(replace(ctx, attempt=9, was_done=True))
    assert kind(outcome) == "Held quiet_time"
    assert outcome.retry_after == ctx.services.quiet_seconds
    await eventually(lambda: bool(evolution.live()), message="it to land")
    assert kind(await step(replace(ctx, attempt=9, was_done=True))) == "Done removed"
    assert not evolution.rows()
    assert not evolution.live()


@pytest.mark.fault("d5")
@pytest.mark.parametrize(
    ("mode", "parameters", "says"),
    [
        ("429", {"retry_after": 7}, "Held evolution_busy"),
        ("401", {}, "Held evolution_misconfigured"),
        ("5xx_before", {"status": 503}, "Held evolution_unavailable"),
        ("5xx_before", {}, "Unknown instance_remains"),
        ("hang_before", {}, "Unknown instance_remains"),
    ],
)
async def test_what_the_create_that_should_clean_up_answers_is_believed(
    ctx: Context, evolution: SimulatedEvolution, mode: str, parameters: Any, says: str
) -> None:
    await in_doubt(ctx, evolution, "row")
    evolution.arm(mode, operation="create", **parameters)
    outcome = await remove_instance(replace(ctx, attempt=9, was_done=True))
    assert kind(outcome) == says
    assert "ours" in evolution.rows()


@pytest.mark.parametrize("there", ["memory", "foreign row"])
async def test_half_an_instance_that_nobody_can_prove_to_be_ours_is_left_to_a_person(
    ctx: Context, evolution: SimulatedEvolution, there: str
) -> None:
    await create_instance(ctx)
    if there == "foreign row":
        evolution.foreign("ours")
    evolution.half_delete("ours", keep=there.split()[-1])
    outcome = await remove_instance(replace(ctx, attempt=9, was_done=True))
    assert kind(outcome) == "Unknown instance_remains"
    assert isinstance(outcome, Unknown)
    assert "restart Evolution, then replay" in outcome.message
    assert len(evolution.journal.requests("create")) == 1
    assert "ours" in evolution.rows() or "ours" in evolution.live()


async def test_a_row_that_is_gone_at_the_last_moment_leaves_an_instance_of_ours_to_remove(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    await provoke_clean_up(ctx, "ours", token(ctx))
    assert evolution.live()["ours"].token_hash == fingerprint(token(ctx))
    assert kind(await remove_instance(replace(ctx, was_done=True))) == "Done removed"
    assert "ours" not in evolution.rows()


@pytest.mark.fault("d2", "d11")
async def test_what_was_never_seen_to_land_is_watched_for_a_quiet_time(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    """The undo of a create in doubt waits; what lands meanwhile is removed."""
    young = replace(ctx, doubt_age=0.1)
    waits = await remove_instance(young)
    assert isinstance(waits, Held)
    assert waits.code == "quiet_time"
    assert waits.retry_after == pytest.approx(0.2)
    assert kind(await remove_instance(replace(ctx, doubt_age=0.4))) == "Done no_effect"
    assert kind(await remove_instance(replace(young, was_done=True))) == "Done already_absent"
    await create_instance(ctx)
    assert kind(await remove_instance(young)) == "Done removed"
    assert "ours" not in evolution.rows()


@pytest.mark.parametrize(
    ("listing", "says"),
    [
        (None, "Done removed"),
        (("5xx_before", {}), "Held evolution_unavailable"),
        (("401", {}), "Held evolution_misconfigured"),
        (("trunc", {}), "Held evolution_unavailable"),
    ],
)
async def test_an_instance_of_older_code_is_deleted_with_the_token_that_the_list_shows(
    ctx: Context, evolution: SimulatedEvolution, listing: Any, says: str
) -> None:
    evolution.foreign("ours")
    legacy = replace(ctx, facts={"instance_name": "ours", "created_by": str(uuid.uuid4())})
    if listing is not None:
        evolution.arm(listing[0], operation="fetch", **listing[1])
    assert kind(await delete_instance(legacy)) == says
    assert deletes_by_key(evolution) == ({"instance"} if says == "Done removed" else set())


async def test_an_instance_of_older_code_that_no_list_shows_is_gone(ctx: Context) -> None:
    nobody = replace(ctx, facts={"instance_name": "nobody", "created_by": str(uuid.uuid4())})
    assert kind(await delete_instance(nobody)) == "Done already_absent"


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("no_token", "Held token_hidden"),
        ("nameless", "Held list_unreadable"),
        ("v1", "Done removed"),
    ],
)
async def test_an_instance_of_older_code_is_never_gone_while_a_list_of_any_shape_has_it(
    ctx: Context, evolution: SimulatedEvolution, shape: str, says: str
) -> None:
    evolution.put("older", phone="5511999990000")
    older = replace(ctx, facts={"instance_name": "older", "created_by": str(uuid.uuid4())})
    armed = evolution.arm("list_shape", shape=shape, times=None)
    outcome = await delete_instance(older)
    assert kind(outcome) == says
    finding = await probe_removal(older)
    there = isinstance(outcome, Held)
    assert finding.sighting is (Sighting.UNKNOWN if there else Sighting.THERE)
    assert ("older" in evolution.rows()) == ("older" in evolution.live()) == there
    assert armed.fired
    if shape == "no_token":
        assert isinstance(outcome, Held)
        assert "older without its token" in outcome.message
        evolution.drop("older")
        assert kind(await delete_instance(older)) == "Done already_absent", "as it says"


async def test_a_list_that_hides_a_name_proves_no_absence_of_what_is_ours_either(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    await create_instance(ctx)
    evolution.half_delete("ours")
    evolution.arm("list_shape", shape="nameless", times=None)
    evolution.arm("401", operation="fetch")
    assert kind(await remove_instance(replace(ctx, doubt_age=9.0))).startswith("Held")
    assert "ours" in evolution.rows()


async def test_what_is_left_of_an_older_instance_in_memory_alone_is_not_gone(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    evolution.put("older")
    evolution.half_delete("older", keep="memory")
    older = replace(ctx, facts={"instance_name": "older", "created_by": str(uuid.uuid4())})
    outcome = await delete_instance(older)
    assert kind(outcome) == "Held half_there"
    assert "restart Evolution" in getattr(outcome, "message", "")
    await evolution.restart()

    async def is_gone() -> bool:
        return kind(await delete_instance(older)) == "Done already_absent"

    await eventually(is_gone)  # the first call may meet a connection that the restart has cut
    assert not evolution.live()


# -- the QR code


@pytest.fixture
async def baileys(ctx: Context) -> Context:
    given = replace(ctx, input=ctx.input.model_copy(update={"channel": "WHATSAPP-BAILEYS"}))
    assert isinstance(await create_instance(given), Done)
    return given


async def test_the_qr_code_is_kept_for_a_minute_and_nowhere_else(
    baileys: Context, redis: Redis
) -> None:
    outcome = await ask_for_qr(baileys)
    assert outcome == Done({"qr": "ready"})
    kept = json.loads(await redis.get("evosaga:qr:ours") or b"")
    assert kept["base64"].startswith("data:image/png;base64,")
    assert kept["code"]
    assert 0 < await redis.ttl("evosaga:qr:ours") <= 60


async def test_a_number_asks_for_a_pairing_code_too(baileys: Context, redis: Redis) -> None:
    given = replace(baileys, input=baileys.input.model_copy(update={"number": "5511987654321"}))
    assert await ask_for_qr(given) == Done({"qr": "ready"})
    assert json.loads(await redis.get("evosaga:qr:ours") or b"")["pairing_code"]


@pytest.mark.parametrize(
    ("mode", "parameters"),
    [
        ("no_qr", {}),
        ("5xx_before", {}),
        ("refuse", {}),
        ("hang_before", {}),
        ("trunc", {}),
        ("huge", {}),
        ("ok200_error", {}),
        ("wrong_body", {"body": [1]}),
        ("drop", {}),
        ("foreign", {}),
    ],
)
async def test_a_qr_code_that_does_not_come_is_no_failure(
    baileys: Context,
    redis: Redis,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
) -> None:
    evolution.arm(mode, operation="connect", **parameters)
    assert await ask_for_qr(baileys) == Done({"qr": "not_yet"})
    assert await redis.exists("evosaga:qr:ours") == 0


async def test_a_passive_channel_needs_no_qr_code(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    assert await ask_for_qr(ctx) == Done({"qr": "not_needed"})
    assert list(evolution.journal) == []


@pytest.mark.fault("f1")
async def test_a_redis_that_is_away_holds_the_qr_code_and_burns_no_attempt(
    baileys: Context, own_redis: Redis, own_valkey: Any
) -> None:
    await own_redis.ping()
    await asyncio.to_thread(own_valkey.stop)
    outcome = await ask_for_qr(
        replace(baileys, services=replace(baileys.services, redis=own_redis))
    )
    assert kind(outcome) == "Held redis_unavailable"


# -- what is sent


@pytest.mark.fault("c16")
async def test_a_slow_answer_is_no_timeout_and_no_create_waits_for_a_qr_code(
    ctx: Context,
) -> None:
    """With a QR code the answer takes five and a half seconds, and more on a busy server."""
    waits = load_settings(_env_file=None).evolution_timeout
    assert waits >= 30
    assert max(step.timeout for step in CREATE_INTEGRATION.steps) > waits
    baileys = ctx.input.model_copy(update={"channel": "WHATSAPP-BAILEYS"})
    assert payload(replace(ctx, input=baileys), "ours", token(ctx))["qrcode"] is False


@pytest.mark.fault("c20")
async def test_the_payload_is_an_allow_list_and_a_webhook_always_names_its_events(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    public = replace(ctx.services, public_url="https://evosaga.example")
    asked = payload(replace(ctx, services=public), "ours", token(ctx))
    assert set(asked) == {"instanceName", "integration", "token", "qrcode", "webhook"}
    webhook = asked["webhook"]
    assert webhook["url"] == "https://evosaga.example/webhooks/evolution/ours"
    assert set(webhook["headers"]) == {"X-Webhook-Token"}
    assert webhook["headers"]["X-Webhook-Token"] not in webhook["url"]
    assert "MESSAGES_UPSERT" in webhook["events"]
    assert "REMOVE_INSTANCE" not in webhook["events"]
    given = ctx.input.model_copy(update={"webhook_url": "https://theirs.example/in"})
    theirs = payload(replace(ctx, input=given), "ours", token(ctx))
    assert theirs["webhook"]["headers"] == {}
    assert theirs["webhook"]["events"]
    assert isinstance(await create_instance(replace(ctx, input=given)), Done)


async def test_no_error_is_ever_a_reason_to_call_unknown_a_failure(ctx: Context) -> None:
    """A worker that may not act any more raises; it says nothing about the instance."""

    def stop() -> None:
        raise RuntimeError("not in charge")

    api = EvolutionApi(ctx.services.servers["default"].url, API_KEY, before_send=stop)
    async with api:
        for step in (create_instance, remove_instance, delete_instance):
            with pytest.raises(RuntimeError, match="not in charge"):
                await step(replace(ctx, services=replace(ctx.services, servers={"default": api})))


def test_the_kinds_of_outcome_are_these_four() -> None:
    assert {Done, Held, Rejected, Unknown} == set(Outcome.__args__)


@pytest.mark.fault("c17")
async def test_a_chosen_name_is_looked_for_before_a_create_that_could_kill_its_owner(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    """A starting Evolution lets the create of a name pass whose instance it has not loaded yet."""
    evolution.foreign("chosen")
    await evolution.restart(warmup=2.0)
    facts = {**ctx.facts, "instance_name": "chosen"}
    wanted = replace(
        ctx, facts=facts, input=ctx.input.model_copy(update={"instance_name": "chosen"})
    )
    outcome = await create_instance(wanted)
    assert kind(outcome) in ("Held name_in_doubt", "Rejected name_taken")
    await asyncio.sleep(0)
    assert evolution.journal.requests("create") == []
    assert "chosen" in evolution.rows()
