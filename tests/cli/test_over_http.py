"""Verbs over HTTP, on a machine that has an address and a key and nothing else."""

import asyncio
import contextlib
import json
import re
import shutil
import ssl
import stat
import uuid
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.alerts import Condition, observe
from evosaga.events.database import open_pool
from evosaga.orchestrator.api import fixes
from evosaga.orchestrator.cli.errors import CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.reconcile_report import tell_unseen
from evosaga.orchestrator.cli.remote import recover, session
from evosaga.orchestrator.cli.remote.target import Target
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, THEIRS, asked, client_with
from tests.api.standing import ONES
from tests.support.commandline import Evosaga, Ran, commandline, creation
from tests.support.waiting import eventually

database_url, redis, evolution, of_module, parts, address_ = ONES

RECEIVERS = json.dumps({name: {"url": "http://127.0.0.1:1/hook"} for name in ("nearby", "far")})


@pytest.fixture(scope="module")
def settings(of_module: Settings) -> Settings:
    """With two receivers of alerts."""
    return Settings.model_validate(of_module.model_dump() | {"receivers": RECEIVERS})


@pytest.fixture
def laptop(tmp_path: Path, address_: str) -> Evosaga:
    """No database, no Redis, no Evolution and no secret."""
    return Evosaga(tmp_path).having(
        url=address_, api_key=OPERATOR, state_dir=str(tmp_path / "nothing")
    )


@pytest.fixture
def direct(tmp_path: Path, settings: Settings) -> Evosaga:
    """The same verbs with the databases at hand."""
    return commandline(tmp_path, settings).having(receivers=RECEIVERS)


@pytest.fixture(scope="module")
async def made(address_: str) -> dict[str, Any]:
    """An integration that waits for its phone."""
    async with client_with(address_, OPERATOR) as client:
        body = asked(organization_id=str(uuid.uuid4()), channel="WHATSAPP-BAILEYS")
        told: dict[str, Any] = (await client.post(CREATE, json=body)).json()
    return told


def refused(ran: Ran, code: int, *words: str) -> None:
    """One sentence that has these words, and nothing on stdout."""
    assert (ran.code, ran.out) == (code, ""), ran
    [line] = ran.err.strip().splitlines()
    for word in words:
        assert word in line, line


async def test_what_is_read_over_http_is_what_is_read_from_the_databases(
    laptop: Evosaga, direct: Evosaga, made: dict[str, Any], settings: Settings
) -> None:
    assert settings.database_url is not None
    async with await open_pool(settings.database_url) as pool:  # it is over, so it stays as it is
        await observe(pool, [Condition("breaker/far", "breaker", "far is away")])
        await pool.execute("UPDATE evosaga.alerts SET resolved_at = now(), announced_at = now()")
    saga, name = made["saga_id"], made["instance_name"]
    for words in (
        ("status", name),
        ("list", "--instance-name", name),
        ("why", saga),
        ("events", saga),
        ("replay", saga, "--plan"),
        ("letters",),
        ("alerts", "--all"),
        ("alerts", "receivers"),
        ("integrations", "list", "--search", name, "--status", "pending", "--sort=-name"),
        ("integrations", "list", "--limit", "1"),
        ("integrations", "show", name),
    ):
        there, here = await asyncio.gather(laptop(*words, "--json"), direct(*words, "--json"))
        assert (there.code, there.err) == (here.code, ""), there.err
        one, other = ([json.loads(line) for line in ran.lines] for ran in (there, here))
        if words[0] == "why":  # tells how long ago it was
            one, other = ([told | {"headline": ""} for told in each] for each in (one, other))
        if words[0] == "letters":  # and whether there are more, instead of how many
            one, other = ([told["letters"] for told in each] for each in (one, other))
        assert one == other, words


async def test_an_integration_is_made_watched_and_deleted_over_http(laptop: Evosaga) -> None:
    ran = await laptop(*creation(channel="EVOLUTION"))
    assert ran.code == 0, ran.err
    assert "saga.completed" in ran.out
    [name] = re.findall(r"^completed in [0-9.]+ s: (wa-\S+) is there$", ran.out, re.MULTILINE)
    health = await laptop("health", "--json")
    assert {one["instance"] for one in health.json["integrations"]} >= {name}
    gone = await laptop("delete", name, "--json")
    assert (gone.code, gone.json["success"], gone.json["saga"]) == (0, True, "delete-integration")
    again = await laptop("delete", name)
    assert again.code == 1
    assert "no integration has the instance" in again.err


async def test_a_duplicate_and_an_id_used_twice_are_refused_as_they_are_directly(
    laptop: Evosaga,
) -> None:
    organization = str(uuid.uuid4())
    given = creation(**{"organization-id": organization, "channel": "EVOLUTION", "id": "one"})
    first, same = await laptop(*given, "--json"), await laptop(*given, "--json")
    assert (first.code, same.code) == (0, 0)
    assert first.json["saga_id"] == same.json["saga_id"]
    duplicate = await laptop(*creation(**{"organization-id": organization}))
    assert duplicate.code == 1
    assert f"to replace it, first: evosaga delete {first.json['instance_name']}" in duplicate.err
    other = await laptop(*creation(**{"organization-id": organization, "id": "one"}))
    refused(other, 2, "conflicting_duplicate")


async def test_what_is_parked_is_replayed_and_cancelled_over_http(
    laptop: Evosaga, evolution: SimulatedEvolution, address_: str
) -> None:
    async with client_with(address_, OPERATOR) as client:
        body = asked(organization_id=str(uuid.uuid4()))
        name = (await client.post(CREATE, json=body)).json()["instance_name"]
        evolution.arm("5xx_before", operation="delete", times=None, name=name)
        parked = (await client.delete(f"/integrations/evolution/{name}")).json()
    assert parked["code"] == "parked"
    evolution.disarm()
    listed = await laptop("list", "--status", "failed", "-n", "1", "-j")
    assert listed.json["sagas"][0]["saga_id"] == parked["saga_id"]
    plan = await laptop("sagas", "replay", parked["saga_id"], "--plan")
    assert plan.code == 0
    replayed = await laptop("replay", "--status", "failed", "--json")
    assert (replayed.code, replayed.json["outcomes"]) == (0, {"completed": 1})
    refused(await laptop("replay", parked["saga_id"]), 2, "not_replayable")
    refused(await laptop("cancel", parked["saga_id"]), 2, "not_cancellable")


async def test_the_qr_code_comes_over_http_until_the_phone_is_paired(
    laptop: Evosaga, evolution: SimulatedEvolution, made: dict[str, Any]
) -> None:
    name = made["instance_name"]
    shown = await laptop("qr", name, "--json")
    assert (shown.code, shown.json["state"]) == (0, "qr")
    assert shown.json["qr_code"]["base64"].startswith("data:image/png")
    evolution.pair(name)

    async def paired() -> bool:
        ran = await laptop("qr", name, "--json")
        return (ran.code, ran.json["state"]) == (0, "paired")

    await eventually(paired, 20)


async def test_integrations_are_found_and_shown_over_http(
    laptop: Evosaga, made: dict[str, Any]
) -> None:
    name = made["instance_name"]
    listed = await laptop("integrations", "list", "--search", name)
    assert (name in listed.out, listed.lines[-1]) == (True, "1 integration")
    shown = await laptop("integrations", "show", name[:20])
    assert (shown.code, name in shown.out) == (0, True)
    refused(await laptop("integrations", "show", "nobody"), 2, "evosaga integrations list")
    refused(await laptop("integrations", "list", "--cursor", "x"), 2, "cursor")


async def test_dead_letters_are_removed_and_sent_again_over_http(
    laptop: Evosaga, direct: Evosaga, redis: Redis
) -> None:
    await redis.xadd(streams.COMMANDS, {"data": "no command"})

    async def letter(known: str = "") -> str:
        found: list[str] = []

        async def there() -> bool:
            listed = (await laptop("letters", "--json")).json["letters"]
            ids = (one["letter_id"] for one in listed if one["data"] == "no command")
            found[:] = [id_ for id_ in ids if id_ != known]
            return len(found) == 1

        await eventually(there, 20)
        return found[0]

    one = await letter()
    again = await laptop("letters", "--send-again", one)
    assert (again.code, again.out) == (0, "sent 1 again\n")
    two = await letter(one)  # it is read again, and is no command this time either
    refused(await laptop("letters", "--remove", one, two), 2, "removed 1", "evosaga letters")
    refused(await laptop("letters", "--send-again", two), 2, "sent 0 again", "any more")
    refused(await direct("letters", "--send-again", two), 2, "sent 0 again")
    refused(await laptop("letters", "--remove", one, "--send-again", two), 2, "one of them")


async def test_a_letter_whose_answer_was_lost_counts_as_sent(laptop: Evosaga) -> None:
    tries = 0

    async def send(request: web.Request) -> web.Response:
        nonlocal tries
        tries += 1
        if tries == 1:  # obeyed, and then the connection breaks
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"code": "unknown_letter", "detail": "gone"}, status=404)

    stub = web.Application()
    stub.router.add_post("/dead-letters/{letter}/send", send)
    runner = web.AppRunner(stub)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    there = laptop.having(url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        ran = await there("letters", "--send-again", "1-0")
        assert (ran.code, ran.out) == (0, "sent 1 again\n")
        refused(await there("letters", "--send-again", "1-0"), 2, "sent 0 again")
    finally:
        await runner.cleanup()


async def test_health_and_drifts_are_mended_over_http_and_name_the_clinic(
    laptop: Evosaga, made: dict[str, Any], redis: Redis
) -> None:
    checked = await laptop("health", "--fix", "--json")
    [one] = [i for i in checked.json["integrations"] if i["instance"] == made["instance_name"]]
    assert (one["name"], checked.err) == ("Clínica Sol", "")
    seen = await laptop("health", "--json")
    [same] = [i for i in seen.json["integrations"] if i["instance"] == made["instance_name"]]
    assert same["name"] == "Clínica Sol"
    await redis.set("whatsapp:instance:wa-nobody-any-more", "{}")
    mended = await laptop("reconcile", "--fix", "--json")
    [repair] = mended.json["repairs"]
    assert (repair["where"], repair["status"]) == ("wa-nobody-any-more", "completed")
    assert [drift["where"] for drift in mended.json["before"]] == ["wa-nobody-any-more"]
    assert (mended.code, mended.json["drifts"]) == (0, [])
    again = await laptop("reconcile", "--fix")
    assert (again.code, again.lines[-1]) in ((0, "the stores agree"), (0, "what was seen agrees"))
    ours = laptop.having(api_key=OUR_KEY)
    theirs = ("reconcile", "--fix", "--organization-id", str(THEIRS))
    refused(await ours(*theirs), 2, "may not", "its own organization")
    refused(await ours("health", "--fix"), 2, "may not")
    refused(await laptop("reconcile", "--fix", "--remove", "wa-none"), 2, "no wa-none to remove")
    for verb in ("reconcile", "recover"):
        refused(await laptop(verb, "--fix", "--timeout", "601"), 2, "--timeout", "600 at most")


def test_servers_that_a_health_check_over_http_did_not_see_are_named_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_unseen({"": "berlin: it does not answer"}, Output())
    said = "evosaga: not everything was looked at: berlin: it does not answer\n"
    assert capsys.readouterr().err == said


async def test_an_organization_is_told_of_a_server_that_was_not_seen_without_its_name(
    laptop: Evosaga,
) -> None:
    told = {"drifts": [], "repairs": [], "before": [], "strangers": [], "busy": 0, "stopped": None}
    told["not_looked_at"] = {"server": fixes._HIDDEN}

    async def repaired(request: web.Request) -> web.Response:
        return web.json_response(told)

    stub = web.Application()
    stub.router.add_post("/drifts/repair", repaired)
    runner = web.AppRunner(stub)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    there = laptop.having(url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        ran = await there("reconcile", "--fix")
    finally:
        await runner.cleanup()
    said = "evosaga: not everything was looked at: a server could not be checked\n"
    assert (ran.code, said in ran.err, "server server" in ran.err) == (3, True, False)


async def test_a_server_that_looks_at_its_own_servers_first_is_given_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "_ANSWERING", 0.05)
    plan: dict[str, Any] = {
        "went_back": None,
        "epoch": 0,
        "commands": [],
        "sagas": [],
        "instances": [],
    }

    async def late(request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.json_response(plan)

    stub = web.Application()
    stub.router.add_get("/recover", late)
    runner = web.AppRunner(stub)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    target = Target(f"http://127.0.0.1:{runner.addresses[0][1]}", "key", "here")
    try:
        assert await recover._recover(target, fix=False, timeout=1.0, out=Output()) == 0
        with pytest.raises(CliError, match="can't be reached"):
            async with session.connect(target) as client:
                await client.get("/recover")
    finally:
        await runner.cleanup()


async def test_a_log_that_went_back_is_healed_over_http(
    laptop: Evosaga, settings: Settings
) -> None:
    assert settings.database_url is not None
    async with await open_pool(settings.database_url) as pool:
        await pool.execute("UPDATE evosaga.relay SET went_back_at = now(), went_back = '{}'")
        plan = await laptop("recover", "--json")
        assert (plan.code, plan.json["went_back"]["newest"]) == (1, 0)
        refused(await laptop.having(api_key=OUR_KEY)("recover", "--fix"), 2, "may not")
        healed = await laptop("recover", "--fix")
        assert (healed.code, healed.err) == (0, "")
        assert healed.lines[-1] == "epoch 1: events are published, and maintenance goes on"
        assert await pool.fetchval("SELECT went_back_at FROM evosaga.relay") is None
    well = await laptop("recover", "--fix")
    assert (well.code, well.out) == (0, "the log has what was published\n")


async def test_receivers_of_alerts_are_tried_by_the_server(laptop: Evosaga) -> None:
    ran = await laptop("alerts", "test", "far", "--json")
    assert (ran.code, [one["receiver"] for one in ran.json["receivers"]]) == (1, ["far"])
    every = await laptop("alerts", "test")
    assert (every.code, [line.split(":")[0] for line in every.lines]) == (1, ["nearby", "far"])
    refused(await laptop("alerts", "test", "lost"), 2, "no receiver 'lost'", "nearby, far")


async def test_an_organizations_key_is_told_what_it_may_not(
    laptop: Evosaga, made: dict[str, Any]
) -> None:
    ours = laptop.having(api_key=OUR_KEY)
    refused(await ours("letters"), 2, "may not", "a key without an organization")
    refused(await ours("letters", "--remove", "1-1"), 2, "may not", "a key without an organization")
    refused(await ours("alerts"), 2, "may not", "a key without an organization")
    refused(await ours("alerts", "test"), 2, "may not", "a key without an organization")
    refused(await ours("status", made["saga_id"]), 2, "is called", "evosaga list")
    stranger = creation(**{"organization-id": str(THEIRS)})
    refused(await ours(*stranger), 2, "may not", "its own organization")


# --- profiles ---------------------------------------------------------------------------------


async def test_login_tries_the_key_and_keeps_it_for_its_owner_alone(
    laptop: Evosaga, tmp_path: Path, address_: str
) -> None:
    bare = laptop.having(url=None, api_key=None)
    bare = Evosaga(tmp_path, bare.variables | {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    wrong = await bare("login", "--url", address_, "--api-key", "no-key-of-that-server")
    refused(wrong, 2, "does not know the API key", "evosaga login")
    ran = await bare("login", "--url", f"{address_}/", "--api-key", OPERATOR)
    assert (ran.code, OPERATOR in ran.out + ran.err) == (0, False)
    file = tmp_path / "config" / "evosaga" / "profiles.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = await bare("list", "--json")
    assert listed.code == 0, listed.err
    assert "profile default" in listed.err, "nobody named a server, so it says which it is"
    await bare("login", "--url", address_, "--api-key", OUR_KEY, "--profile", "ours")
    refused(await bare("letters", "--profile", "ours"), 2, "may not")
    assert (await bare("letters", "--profile", "default", "-j")).err == ""
    refused(await bare("list", "--profile", "theirs"), 2, "no profile 'theirs'", "default, ours")
    assert (await bare("logout", "--profile", "ours")).code == 0
    file.chmod(0o644)
    refused(await bare("list"), 2, "holds API keys", f"chmod 600 {file}")
    file.chmod(0o600)
    file.write_text("{")
    refused(await bare("list"), 2, "can't be understood", "evosaga login")


async def test_a_profile_gives_way_to_a_database_that_is_given(
    direct: Evosaga, tmp_path: Path
) -> None:
    folder = tmp_path / "config" / "evosaga"
    folder.mkdir(parents=True)
    profile = {"url": "http://127.0.0.1:1", "api_key": "k"}
    (folder / "profiles.json").write_text(
        json.dumps({"current": "far", "profiles": {"far": profile}})
    )
    (folder / "profiles.json").chmod(0o600)
    both = Evosaga(tmp_path, direct.variables | {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    assert (await both("list", "--json")).code == 0
    refused(await both("list", "--profile", "far"), 3, "can't be reached", "(profile far)")


# --- what can be wrong with a server ----------------------------------------------------------


async def test_a_wrong_address_or_key_is_one_sentence_with_the_cure(
    laptop: Evosaga, address_: str
) -> None:
    port = address_.rpartition(":")[2]
    for url, code, words in (
        ("http://127.0.0.1:1", 3, ("connection refused", "EVOSAGA_URL")),
        ("http://evosaga.invalid", 3, ("name is not known", "EVOSAGA_URL")),
        (f"https://127.0.0.1:{port}", 3, ("speaks no TLS", "http://")),
        (f"{address_}/somewhere", 2, ("does not have that route", "older release")),
        ("ftp://127.0.0.1", 2, ("no address of a server", "https://")),
        ("http://me:secret@127.0.0.1", 2, ("no address of a server", "without user")),
        ("http://:secret@127.0.0.1", 2, ("no address of a server", "without user")),
        ("http://127.0.0.1:x", 2, ("no address of a server",)),
    ):
        refused(await laptop.having(url=url)("list"), code, *words)
    refused(await laptop.having(api_key="wrong")("list"), 2, "does not know the API key")
    refused(await laptop.having(api_key=None)("list"), 2, "no API key", "evosaga login")
    refused(await laptop("migrate", "--url", address_), 2, "does not go over HTTP", "--url")


@contextlib.asynccontextmanager
async def another_server(body: str, status: HTTPStatus, kind: str) -> AsyncIterator[str]:
    """A server that gives everybody the same answer; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(f"{head}{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("status", [HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.FOUND])
async def test_a_server_that_is_no_evosaga_is_called_that(
    laptop: Evosaga, status: HTTPStatus
) -> None:
    async with another_server("<html>hello</html>", status, "text/html") as url:
        refused(await laptop.having(url=url)("list"), 2, "is no evosaga server", "EVOSAGA_URL")


async def test_a_server_of_an_older_release_is_called_that(laptop: Evosaga) -> None:
    told = {"code": "not_found", "detail": "no route has this path", "status": 404}
    async with another_server(
        json.dumps(told), HTTPStatus.NOT_FOUND, "application/problem+json"
    ) as url:
        refused(await laptop.having(url=url)("health"), 2, "older release", "update it")


async def test_something_that_speaks_no_http_is_called_that(laptop: Evosaga) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await reader.readuntil(b"\r\n\r\n")  # else the connection is reset, not closed
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ran = await laptop.having(url=f"http://127.0.0.1:{port}")("list")
    server.close()
    refused(ran, 3, "does not speak HTTP")


async def test_a_certificate_that_nobody_vouches_for_is_named_with_the_cure(
    laptop: Evosaga, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    certificate = tmp_path / "server.pem"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", str(certificate)),
        *("-out", str(tmp_path / "cert.pem")),
        stderr=asyncio.subprocess.DEVNULL,
    )
    if await made.wait():
        pytest.skip("openssl makes no certificate here")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", certificate)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    ran = await laptop.having(url=f"https://localhost:{port}")("list")
    server.close()
    refused(ran, 3, "certificate", "SSL_CERT_FILE")


# Last, since it leaves a server behind that was away.
async def test_a_saga_that_waits_for_a_dependency_is_held_and_can_be_filtered_by_that(
    laptop: Evosaga, direct: Evosaga, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", times=None, status=503)
    given = creation(channel="EVOLUTION")
    saga = (await laptop(*given, "--no-wait", "--json")).json["saga_id"]

    async def held() -> bool:
        listed = (await laptop("list", "--status", "held", "--json")).json["sagas"]
        return saga in [one["saga_id"] for one in listed]

    await eventually(held, 30)
    for where in (laptop, direct):  # for a moment it is tried again, and not held

        async def told(where: Evosaga = where) -> bool:
            saga_now = (await where("status", saga, "--json")).json
            assert saga_now["status"] == "running"
            return saga_now["held"] is True

        async def listed(where: Evosaga = where) -> bool:
            return "running, held" in (await where("list", "--status", "held")).out

        await eventually(told, 30)
        await eventually(listed, 30)
    assert (await laptop("cancel", saga, "-y")).code == 0
    assert not await held()
    evolution.disarm()
