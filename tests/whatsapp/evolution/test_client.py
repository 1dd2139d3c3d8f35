"""The client of the Evolution server: when it asks, when it leaves the server in peace, and how
many share one list. Against the simulated server, with its real faults."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

import evosaga.sagas.whatsapp.evolution.circuit_breaker
import evosaga.sagas.whatsapp.evolution.client
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.outcome import Done, Finding, Held, Sighting, Unknown
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from evosaga.sagas.whatsapp.evolution.answer_origin import cure_in
from evosaga.sagas.whatsapp.evolution.answers import Presence
from evosaga.sagas.whatsapp.evolution.circuit_breaker import FAILURES
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.services import Context, Services
from evosaga.sagas.whatsapp.steps.evolution_instance import create_instance, probe_instance
from evosaga.sagas.whatsapp.steps.instance_removal import (
    delete_instance,
    probe_removal,
    remove_instance,
)
from evosaga.sagas.whatsapp.steps.pairing_code import ask_for_qr
from tests.conftest import API_KEY
from tests.support.waiting import eventually


@pytest.fixture
async def api(services: Services) -> EvolutionApi:
    return services.servers["default"]


@pytest.fixture
def ctx(services: Services) -> Context:
    """The first attempt at an instance ``ours``."""
    saga_id = uuid.uuid4()
    wanted = CreateIntegration(
        organization_id=uuid.uuid4(), clinic_id=uuid.uuid4(), name="Sol", channel="EVOLUTION"
    )
    facts = {"instance_name": "ours", "created_by": str(saga_id), "key_id": services.keys.current}
    return Context(saga_id=saga_id, input=wanted, services=services, facts=facts)


async def failures(api: EvolutionApi, evolution: SimulatedEvolution, many: int) -> None:
    """So many failures of the server in a row."""
    evolution.arm("5xx_before", operation="connectionState", times=many)
    for _ in range(many):
        assert await api.look("nobody", "no-token") is Presence.UNKNOWN


TROUBLE: list[tuple[str, dict[str, Any], str, str]] = [
    # the fault, its parameters, the code of what is held meanwhile, a word of the reason
    ("5xx_before", {}, "evolution_unavailable", "HTTP 500"),
    ("5xx_before", {"status": 503}, "evolution_unavailable", "HTTP 503"),
    ("html502", {}, "evolution_unavailable", "HTTP 502"),
    ("refuse", {}, "evolution_unavailable", ""),
    ("hang_before", {}, "evolution_unavailable", "nothing in time"),
    ("cors", {}, "evolution_misconfigured", "HTTP 500: it lets browsers in only"),
    ("licence", {}, "evolution_misconfigured", "HTTP 503: it has no licence yet"),
    ("401", {}, "evolution_misconfigured", "HTTP 401: it refuses the key"),
    ("no_key", {}, "evolution_misconfigured", "HTTP 403: the key does not reach it"),
    ("redirect", {}, "evolution_misconfigured", "HTTP 302: it leads elsewhere"),
    ("html502", {"status": 200}, "evolution_misconfigured", "HTTP 200, and no JSON"),
    ("proxy", {}, "evolution_misconfigured", "HTTP 403: a proxy, a firewall"),
    ("proxy", {"status": 407}, "evolution_misconfigured", "HTTP 407: a proxy on the way"),
    ("proxy", {"status": 200, "body": "json"}, "evolution_misconfigured", "nothing that Evolution"),
]


@pytest.mark.fault("c10")
@pytest.mark.parametrize(
    ("mode", "parameters", "code", "reason"),
    TROUBLE,
    ids=[f"{mode}{p.get('status', '')}{p.get('body', '')}" for mode, p, *_ in TROUBLE],
)
async def test_a_server_in_trouble_is_left_in_peace_and_no_step_has_an_effect_then(
    ctx: Context,
    evolution: SimulatedEvolution,
    mode: str,
    parameters: dict[str, Any],
    code: str,
    reason: str,
) -> None:
    api = ctx.services.servers["default"]
    evolution.arm(mode, times=None, **parameters)
    for _ in range(FAILURES):
        await create_instance(ctx)
    state = api.state
    assert state.state == "open"
    assert state.reason is not None
    assert reason in state.reason
    assert API_KEY not in repr(state)
    assert state.retry_in is not None
    evolution.disarm()
    asked = len(evolution.journal.entries)
    for step in (create_instance, remove_instance, delete_instance):
        for given in (ctx, replace(ctx, in_doubt=True, attempt=2), replace(ctx, was_done=True)):
            outcome = await step(given)
            assert isinstance(outcome, Held), outcome
            assert (outcome.code, outcome.in_doubt) == (code, False)
            assert outcome.retry_after is not None
            if code == "evolution_misconfigured":
                assert cure_in(outcome.message) is not None
            assert API_KEY not in repr(outcome)
    assert (await probe_instance(ctx)).sighting is Sighting.UNKNOWN
    assert not (await api.instances()).sent
    baileys = replace(ctx, input=ctx.input.model_copy(update={"channel": "WHATSAPP-BAILEYS"}))
    assert await ask_for_qr(baileys) == Done({"qr": "not_yet"})
    assert len(evolution.journal.entries) == asked, "something was sent"


@pytest.mark.fault("c1")
async def test_who_finds_out_that_the_server_is_down_is_told_how_long_to_stay_away(
    ctx: Context,
) -> None:
    async with EvolutionApi("http://127.0.0.1:9", API_KEY, timeout=1) as nobody:
        nowhere = replace(ctx, services=replace(ctx.services, servers={"default": nobody}))
        waits = []
        for _ in range(FAILURES):
            outcome = await create_instance(nowhere)
            assert isinstance(outcome, Held)
            assert (outcome.code, outcome.in_doubt) == ("evolution_unreachable", False)
            waits.append(outcome.retry_after)
    assert waits[:-1] == [None] * (FAILURES - 1), "that is left to the engine"
    assert waits[-1] is not None
    assert 1.0 <= waits[-1] <= 2.5


async def test_one_failure_in_a_row_of_successes_is_no_outage(
    ctx: Context, evolution: SimulatedEvolution, api: EvolutionApi
) -> None:
    for _ in range(3):
        await failures(api, evolution, FAILURES - 1)
        assert await api.look("nobody", "no-token") is Presence.ABSENT
        assert api.state.state == "closed"
    await failures(api, evolution, FAILURES)
    assert api.state.state == "open"


@pytest.mark.parametrize(
    ("mode", "operation", "parameters"),
    [
        ("reject", "create", {"message": "token is required"}),
        ("reject", "create", {"message": "what went wrong"}),
        ("foreign", "create", {}),
        ("429", None, {}),
        ("401", "connectionState", {}),
        ("401", "delete", {}),
    ],
)
async def test_what_is_wrong_with_one_instance_is_not_wrong_with_the_server(
    ctx: Context,
    evolution: SimulatedEvolution,
    mode: str,
    operation: str | None,
    parameters: dict[str, Any],
) -> None:
    if operation != "create":
        await create_instance(ctx)
    evolution.arm(mode, operation=operation, times=None, **parameters)
    for _ in range(FAILURES + 2):
        if operation == "create":
            await create_instance(ctx)
        else:
            await ctx.services.servers["default"].delete("ours", "a-wrong-token")
            await ctx.services.servers["default"].look("ours", "a-wrong-token")
    assert ctx.services.servers["default"].state.state == "closed"


async def test_it_goes_on_by_itself_drip_by_drip(
    ctx: Context,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred calls come at once when the pause is over: the server meets them a few at first."""
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.circuit_breaker, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.client, "_PATIENCE", 60.0)
    async with EvolutionApi(evolution.url, API_KEY, timeout=60.0) as api:
        await failures(api, evolution, FAILURES)
        await eventually(lambda: api.state.state == "half-open")
        evolution.arm("slow", operation="connectionState", times=None, seconds=0.05)
        begun = time.time()
        await asyncio.gather(*(api.look("nobody", "no-token") for _ in range(100)))
        assert api.state.state == "closed"
    looks = [e for e in evolution.journal.requests("connectionState") if e.received_at >= begun]
    [first, *others] = looks[:-1]
    assert first.answered_at is not None
    assert all(first.answered_at <= later.received_at for later in others), "one call goes first"


# -- in the middle of something when it opens


@pytest.fixture
async def patient(ctx: Context, evolution: SimulatedEvolution) -> AsyncIterator[Context]:
    """The same with time enough for others to find out meanwhile that the server is down."""
    async with EvolutionApi(evolution.url, API_KEY, timeout=2.0) as api:
        yield replace(ctx, services=replace(ctx.services, servers={"default": api}))


async def test_a_create_whose_look_is_not_sent_any_more_is_in_doubt_and_costs_no_attempt(
    ctx: Context, evolution: SimulatedEvolution, api: EvolutionApi
) -> None:
    """It was sent, and it did land; that nobody looks now must not be taken for "not sent"."""
    await failures(api, evolution, FAILURES - 1)
    evolution.arm("5xx_after", operation="create")
    outcome = await create_instance(ctx)
    assert isinstance(outcome, Held)
    assert (outcome.code, outcome.in_doubt) == ("evolution_unavailable", True)
    assert outcome.retry_after is not None
    assert "ours" in evolution.rows()
    await eventually(lambda: api.state.state == "half-open")
    adopted = await create_instance(replace(ctx, in_doubt=True))
    assert isinstance(adopted, Done)
    assert adopted.result["adopted"]
    assert len(evolution.journal.requests("create")) == 1


async def test_a_201_that_nobody_can_confirm_is_in_doubt_as_well(
    patient: Context, evolution: SimulatedEvolution
) -> None:
    """The server answers the create, and is found to be down by others before the look."""
    evolution.arm("slow_after", operation="create", seconds=1.0)
    creating = asyncio.create_task(create_instance(patient))
    await eventually(lambda: "ours" in evolution.rows())
    await failures(patient.services.servers["default"], evolution, FAILURES)
    outcome = await creating
    assert isinstance(outcome, Held)
    assert outcome.in_doubt
    assert len(evolution.journal.requests("create")) == 1


@pytest.mark.parametrize("mode", ["html502", "hang_after", "5xx_after", "cut"])
async def test_a_delete_that_nobody_can_confirm_is_in_doubt_and_given_time(
    patient: Context, evolution: SimulatedEvolution, mode: str
) -> None:
    api, undo = patient.services.servers["default"], replace(patient, was_done=True)
    await create_instance(patient)
    evolution.arm("slow", operation="delete", seconds=1.0)
    evolution.arm(mode, operation="delete")
    removing = asyncio.create_task(remove_instance(undo))
    await eventually(lambda: evolution.fired.get("slow"))
    await failures(api, evolution, FAILURES - 1)
    outcome = await removing
    assert isinstance(outcome, Held)
    assert outcome.in_doubt
    assert outcome.retry_after is not None
    assert outcome.retry_after >= 3.0, "a second DELETE too soon is a second removal"
    await eventually(lambda: api.state.state == "half-open")
    assert await remove_instance(undo) == Done({"note": "already_absent"})
    assert len(evolution.journal.requests("delete")) == 1


async def test_a_503_to_a_delete_costs_no_attempt(
    ctx: Context, evolution: SimulatedEvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_instance(ctx)
    evolution.arm("5xx_before", operation="delete", status=503)
    outcome = await delete_instance(ctx)
    assert outcome == Held("evolution_unavailable", "Evolution is unavailable (503)", 3.0, True)
    evolution.arm("licence", operation="delete")
    outcome = await delete_instance(ctx)
    assert isinstance(outcome, Held)
    assert outcome.code == "evolution_misconfigured"


async def test_without_an_outage_an_unclear_look_costs_an_attempt(
    ctx: Context, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="connectionState")
    assert isinstance(await create_instance(ctx), Unknown)


# -- the bulkhead


@pytest.fixture
async def narrow(evolution: SimulatedEvolution) -> AsyncIterator[EvolutionApi]:
    async with EvolutionApi(evolution.url, API_KEY, timeout=5.0, concurrency=3) as api:
        yield api


@pytest.mark.fault("o6")
async def test_so_many_calls_are_out_at_once_and_the_others_are_told_to_come_back(
    ctx: Context,
    evolution: SimulatedEvolution,
    narrow: EvolutionApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.client, "_PATIENCE", 0.1)
    evolution.arm("slow", operation="create", times=None, seconds=1.0)
    services = replace(ctx.services, servers={"default": narrow})
    many = [
        replace(ctx, services=services, facts={**ctx.facts, "instance_name": f"ours-{n}"})
        for n in range(10)
    ]
    outcomes = await asyncio.gather(*(create_instance(one) for one in many))
    held = [outcome for outcome in outcomes if isinstance(outcome, Held)]
    assert len(held) == 7
    assert {(one.code, one.in_doubt) for one in held} == {("evolution_busy", False)}
    assert all(0.5 <= (one.retry_after or 0) <= 1 for one in held), (
        "a moment, while calls come back"
    )
    assert sum(isinstance(outcome, Done) for outcome in outcomes) == 3
    assert len(evolution.journal.requests("create")) == 3
    assert narrow.state.state == "closed"


async def test_a_qr_code_is_waited_for_while_the_server_is_busy(
    ctx: Context,
    evolution: SimulatedEvolution,
    narrow: EvolutionApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.client, "_PATIENCE", 0.1)
    evolution.arm("slow", operation="connectionState", times=3, seconds=1.0)
    looks = [asyncio.create_task(narrow.look("nobody", "no-token")) for _ in range(3)]
    await asyncio.sleep(0)
    baileys = replace(
        ctx,
        services=replace(ctx.services, servers={"default": narrow}),
        input=ctx.input.model_copy(update={"channel": "WHATSAPP-BAILEYS"}),
    )
    outcome = await ask_for_qr(baileys)
    assert isinstance(outcome, Held)
    assert outcome.code == "evolution_busy"
    await asyncio.gather(*looks)


async def test_an_attempt_that_is_broken_off_gives_its_place_back(
    evolution: SimulatedEvolution, narrow: EvolutionApi
) -> None:
    evolution.arm("hang_before", operation="connectionState", times=3)
    hanging = [asyncio.create_task(narrow.look("nobody", "no-token")) for _ in range(3)]
    await eventually(lambda: evolution.fired.get("hang_before") == 3)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    looks = [narrow.look("nobody", "no-token") for _ in range(3)]
    assert await asyncio.gather(*looks) == [Presence.ABSENT] * 3
    assert narrow.state.state == "closed"


@pytest.mark.fault("c2")
async def test_calls_that_a_step_breaks_off_after_long_silence_are_failures_all_the_same(
    evolution: SimulatedEvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call may take longer than the step that makes it, its own deadline never comes."""
    monkeypatch.setattr(evosaga.sagas.whatsapp.evolution.client, "_QUICK_TIMEOUT", 0.3)
    evolution.arm("hang_before", times=None)
    async with EvolutionApi(evolution.url, API_KEY, timeout=60.0) as api:

        async def create() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.6):
                    await api.create({"instanceName": "ours"})

        await asyncio.gather(*(create() for _ in range(FAILURES)))
        assert api.state.state == "open"
        assert api.state.reason == "create: nothing in time"


# -- one list for many


async def test_a_hundred_looks_share_a_few_lists(evolution: SimulatedEvolution) -> None:
    for n in range(50):
        evolution.foreign(f"somebodys-{n}")
    names = [f"nobody-{n}" for n in range(100)]
    async with EvolutionApi(evolution.url, API_KEY) as api:
        sights = await asyncio.gather(*(api.look(name, f"token-of-{name}") for name in names))
    assert set(sights) == {Presence.ABSENT}
    lists = [e for e in evolution.journal.requests("fetch") if e.key_kind == "global"]
    assert 1 <= len(lists) <= 12, f"{len(lists)} lists for 100 looks"


async def test_a_list_that_was_under_way_proves_nothing_to_who_comes_later(
    evolution: SimulatedEvolution, narrow: EvolutionApi
) -> None:
    evolution.arm("slow_after", operation="fetch", seconds=0.5)
    early = asyncio.create_task(narrow.instances())
    await eventually(lambda: evolution.fired.get("slow_after"))
    evolution.foreign("meanwhile")
    late = [asyncio.create_task(narrow.instances()) for _ in range(5)]
    gives_up = asyncio.create_task(narrow.instances())
    await asyncio.sleep(0)
    gives_up.cancel()
    assert (await early).status == 200
    for answer in await asyncio.gather(*late):
        assert answer.instances is not None
        assert [one.name for one in answer.instances.read()[0]] == ["meanwhile"]
    assert len(evolution.journal.requests("fetch")) == 2


async def test_a_shared_list_is_not_the_business_of_one_worker_that_lost_its_lease(
    evolution: SimulatedEvolution,
) -> None:
    """Each is checked by itself, before; nobody gets somebody else's refusal."""
    may_act = {"one"}

    def check() -> None:
        task = asyncio.current_task()
        assert task is not None
        if task.get_name() not in may_act:
            raise RuntimeError("not in charge")

    async with EvolutionApi(evolution.url, API_KEY, before_send=check) as api:
        one = asyncio.create_task(api.instances(), name="one")
        other = asyncio.create_task(api.instances(), name="other")
        assert (await one).status == 200
        with pytest.raises(RuntimeError, match="not in charge"):
            await other


# -- what a replay finds


@pytest.mark.parametrize(
    ("there", "made", "removed"),
    [
        ("nothing", Sighting.ABSENT, Sighting.THERE),
        ("mine", Sighting.THERE, Sighting.ABSENT),
        ("foreign", Sighting.FOREIGN, Sighting.THERE),
        ("row", Sighting.HALF, Sighting.HALF),
        ("memory", Sighting.HALF, Sighting.HALF),
        ("blind", Sighting.UNKNOWN, Sighting.UNKNOWN),
    ],
)
async def test_a_probe_says_what_is_there_with_evidence_and_changes_nothing(
    ctx: Context,
    evolution: SimulatedEvolution,
    there: str,
    made: Sighting,
    removed: Sighting,
) -> None:
    if there != "nothing":
        await create_instance(ctx)
    match there:
        case "foreign":
            evolution.foreign("ours")
        case "row" | "memory":
            evolution.half_delete("ours", keep=there)
        case "blind":
            evolution.arm("5xx_before", operation="connectionState", times=None)
    before = (evolution.rows(), evolution.live())
    for probe, sighting in ((probe_instance, made), (probe_removal, removed)):
        finding = await probe(ctx)
        assert finding.sighting is sighting
        assert finding.evidence
        assert ctx.services.keys.instance_token(ctx.saga_id, ctx.services.keys.current) not in repr(
            finding
        )
    assert (evolution.rows(), evolution.live()) == before
    if there == "mine":
        evidence = "Evolution answers 200 to the instance's own token"
        assert await probe_instance(ctx) == Finding(Sighting.THERE, evidence)
