"""The real command line in processes of its own, against the suite's servers."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import living_workers
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import SECRET, Servers
from tests.support.commandline import Evosaga, commandline, creation, working
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually

NOWHERE = "postgresql://somebody:hunter2@127.0.0.1:1/evosaga"


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


WRONG = (
    # verb, variable, value, exit code, sentence
    ("list", "database_url", "mysql://me:hunter2@db/x", 2, "EVOSAGA_DATABASE_URL: must start with"),
    ("list", "database_url", "postgresql://me:hunter2@db:x/x", 2, "EVOSAGA_DATABASE_URL: can't be"),
    ("list", "database_url", NOWHERE, 3, "Postgres at 127.0.0.1:1/evosaga can't be reached"),
    (
        *("worker", "redis_url", "redis://:hunter2@127.0.0.1:1/0"),
        *(3, "Redis at 127.0.0.1:1/0 can't be"),
    ),
    (
        *("worker", "redis_url", "unix:///nowhere/valkey.sock"),
        *(3, "Redis at /nowhere/valkey.sock can't"),
    ),
    ("list", "secret_key", "hunter2", 2, "EVOSAGA_SECRET_KEY: every key needs at least 32 bytes"),
)


async def test_a_server_or_setting_that_is_wrong_is_one_line_without_a_secret(
    evosaga: Evosaga,
) -> None:
    for verb, variable, value, code, sentence in WRONG:
        ran = await evosaga.having(**{variable: value})(verb)
        assert ran.code == code, ran
        assert ran.err.startswith(f"evosaga: {sentence}"), ran.err
        assert len(ran.err.splitlines()) == 1
        assert "hunter2" not in ran.err + ran.out


async def test_a_database_that_is_not_there_is_a_wrong_setting(
    evosaga: Evosaga, servers: Servers
) -> None:
    ran = await evosaga.having(database_url=servers.database("nowhere"))("list")
    assert ran.code == 2
    assert "has no such database: check EVOSAGA_DATABASE_URL" in ran.err


async def test_a_worker_without_settings_names_each_of_them_and_how_to_get_it(
    evosaga: Evosaga,
) -> None:
    names = ("evolution_url", "evolution_api_key", "secret_key")
    ran = await evosaga.having(**dict.fromkeys(names))("worker")
    assert ran.code == 2
    lines = ran.err.splitlines()
    assert [
        f"set EVOSAGA_{name.upper()} to" in line for name, line in zip(names, lines, strict=True)
    ]
    assert "openssl rand -hex 32" in lines[2]


async def test_a_database_without_a_schema_is_told_to_be_migrated_and_then_is(
    evosaga: Evosaga, servers: Servers, database_url: str
) -> None:
    admin = await asyncpg.connect(database_url)
    empty = f"test_{uuid.uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {empty}")
    try:
        fresh = evosaga.having(database_url=servers.database(empty))
        listed, worked = await asyncio.gather(fresh("list"), fresh("worker"))
        assert (listed.code, worked.code) == (2, 2)
        assert "evosaga migrate" in listed.err
        assert "evosaga migrate" in worked.err
        migrated = await fresh("migrate", "--json")
        assert migrated.code == 0
        assert (migrated.json["before"], migrated.json["after"]) == (None, migrations.head())
        assert (await fresh("list", "--json")).json == {"sagas": [], "cursor": None}
    finally:
        await admin.execute(f"DROP DATABASE {empty} WITH (FORCE)")
        await admin.close()


async def test_without_a_worker_a_create_says_how_to_start_one_and_the_command_is_kept(
    evosaga: Evosaga, redis: Redis
) -> None:
    waited, left = await asyncio.gather(
        evosaga(*creation(), "--timeout=0.3"), evosaga(*creation(), "--no-wait", "--json")
    )
    assert waited.code == 1
    assert "no worker is running" in waited.err
    assert "`evosaga worker`" in waited.err
    assert "evosaga status" in waited.err.splitlines()[-1]
    assert left.code == 0
    assert left.json.keys() == {"saga_id", "command_id", "message_id"}
    assert await redis.xlen(streams.COMMANDS) == 2


async def test_an_integration_is_created_told_about_and_deleted(
    evosaga: Evosaga, pool: Pool, evolution: SimulatedEvolution, redis: Redis
) -> None:
    async with working(evosaga, pool) as worker:
        organization = str(uuid.uuid4())
        made = await evosaga(*creation(**{"organization-id": organization, "id": "c-1"}), "--json")
        assert made.code == 0, made.err
        told = made.json
        name, saga_id = told["instance_name"], told["saga_id"]
        assert (told["success"], told["status"], told["command_id"]) == (True, "completed", "c-1")
        assert set(told["qr_code"]) == {"base64", "code", "pairing_code"}
        assert [step["state"] for step in told["steps"]] == ["done"] * 5
        assert name in evolution.live()

        clash = creation(**{"organization-id": organization, "id": "c-1", "name": "Lua"})
        status, page, lines, clouds, again, other = await asyncio.gather(
            evosaga("status", name, "--json"),
            evosaga("--json", "list", "--since=1h", f"--organization-id={organization}"),
            evosaga("events", "c-1"),
            evosaga("events", saga_id, "--follow", "--json"),
            evosaga(*creation(**{"organization-id": organization})),
            evosaga(*clash),
        )
        assert status.json["saga_id"] == saga_id
        assert status.json["over"] is True
        assert saga_id in [saga["saga_id"] for saga in page.json["sagas"]]
        assert lines.lines[-1].endswith("saga.completed")
        assert [line.split()[0] for line in lines.lines] == [str(n) for n in range(12)]
        told_on_stream = [json.loads(line) for line in clouds.lines]
        assert told_on_stream[-1]["type"] == "saga.completed"

        async def as_the_stream_tells() -> bool:
            entries: Any = await redis.xrange(streams.EVENTS)
            events = [json.loads(fields[b"data"]) for _, fields in entries]
            return [e for e in events if e["subject"] == saga_id] == told_on_stream

        await eventually(as_the_stream_tells, message="the stream to tell the same")
        assert again.code == 1
        assert f"to replace it, first: evosaga delete {name}" in again.err
        assert other.code == 2
        assert "the id c-1 was used before, for another command" in other.err
        assert await redis.xlen(streams.DEAD_COMMANDS) == 0  # whoever asked was told

        gone = await evosaga("delete", name)
        assert gone.code == 0
        assert gone.lines[-1].endswith(f"{name} is gone")
        assert name not in evolution.live()
        missing, unknown, plain, table = await asyncio.gather(
            evosaga("delete", name),
            evosaga("status", "nobody"),
            evosaga("status", saga_id),
            evosaga("list"),
        )
        assert missing.code == 1
        assert "no integration has the instance" in missing.err
        assert unknown.code == 2
        assert "no saga, command or instance is called 'nobody'" in unknown.err
        assert "status:       completed" in plain.lines
        assert table.lines[0].split()[:3] == ["BEGAN", "STATUS", "SAGA"]
        worker.terminate()
        _, err = await asyncio.wait_for(worker.communicate(), 15)
        assert worker.returncode == 0, err.decode()
    assert await pool.fetchval("SELECT count(*) FROM evosaga.workers") == 0
    assert [json.loads(line)["event"] for line in err.decode().splitlines()][-1] == "worker is down"


async def test_while_an_attempt_is_out_its_time_limit_is_not_called_the_next_try(
    evosaga: Evosaga, settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("hang_before", operation="create")
    async with running_worker(settings):
        id_ = await publish(redis, create())
        await eventually(lambda: bool(evolution.journal.requests("create")))
        status, why = await asyncio.gather(evosaga("status", id_), evosaga("why", id_))
        evolution.disarm()
        await evolution.restart()
        assert (await outcome(pool, id_)).status == "completed"
    assert "answers by:" in status.out
    assert "next try" not in status.out
    assert "This attempt has until" in why.out
    assert "It goes on by itself" not in why.out


async def test_sagas_are_replayed_and_cancelled_and_a_second_signal_ends_a_worker_at_once(
    evosaga: Evosaga, pool: Pool, evolution: SimulatedEvolution
) -> None:
    async with working(evosaga, pool) as worker:
        evolution.arm("reject", operation="create", message="Invalid integration")
        failed = await evosaga(*creation(channel="EVOLUTION"), "--json")
        assert (failed.code, failed.json["status"]) == (1, "compensated")
        said = f"Nothing is left behind. More: evosaga why {failed.json['saga_id']}"
        assert said in failed.err

        replayed = await evosaga("replay", failed.json["saga_id"], "--reason=mended", "--json")
        assert (replayed.code, replayed.json["status"]) == (0, "completed"), replayed.err
        assert replayed.json["saga_id"] != failed.json["saga_id"]
        late = await evosaga("cancel", replayed.json["saga_id"])
        assert late.code == 2
        assert "the command was refused: the saga is completed already" in late.err

        evolution.arm("licence", operation="create", times=None)
        held = await evosaga(*creation(id="held"), "--timeout=0.5")
        assert held.code == 1
        assert "it goes on by itself: evosaga status" in held.err
        cancelled = await evosaga("cancel", "held")
        assert cancelled.code == 0, cancelled.err
        assert "Nothing is left behind." in cancelled.lines[-1]

        evolution.disarm()
        evolution.arm("hang_before", operation="create")
        await evosaga(*creation(), "--no-wait")
        await eventually(lambda: evolution.fired.get("hang_before"), message="the create to hang")
        worker.send_signal(signal.SIGINT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.wait(), 0.5)
        worker.send_signal(signal.SIGINT)  # the second one does not wait for what is out
        assert await asyncio.wait_for(worker.wait(), 5) == -signal.SIGINT


async def test_the_doctor_names_what_is_bad_and_the_cure(evosaga: Evosaga, redis: Redis) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        ran = await evosaga.having(evolution_api_key="wrong")("doctor", "--json")
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert ran.code == 1
    assert {c["check"]: c["cure"] for c in ran.json["checks"] if c["verdict"] == "bad"} == {
        "eviction": "streams could be evicted: set maxmemory-policy to noeviction",
        "evolution key": "check EVOSAGA_EVOLUTION_API_KEY",
    }
    away = evosaga.having(redis_url="redis://:hunter2@127.0.0.1:1", database_url=NOWHERE)
    ran = await away("doctor")
    assert ran.code == 3
    assert "bad   postgres        Postgres at 127.0.0.1:1/evosaga can't be reached" in ran.out
    assert "bad   redis           Redis at 127.0.0.1:1 can't be reached" in ran.out
    assert "hunter2" not in ran.out


async def test_the_doctor_names_a_variable_that_nothing_reads_and_what_may_be_meant(
    evosaga: Evosaga,
) -> None:
    assert "variables" not in (await evosaga("doctor")).out
    (evosaga.folder / ".env").write_text("EVOSAGA_NO_SUCH_THING=hunter2\n")
    told = (await evosaga.having(evolution_server="hunter2")("doctor")).out
    assert "nothing reads EVOSAGA_EVOLUTION_SERVER\n" in told
    assert "did you mean EVOSAGA_EVOLUTION_SERVERS?" in told
    assert "nothing reads EVOSAGA_NO_SUCH_THING\n" in told
    assert "hunter2" not in told


async def test_the_doctor_shows_the_token_of_the_global_webhook_only_when_asked(
    evosaga: Evosaga,
) -> None:
    public = evosaga.having(public_url="https://evosaga.example")
    token = KeyRing([SECRET]).global_webhook_tokens()[0]
    for arguments in (["doctor"], ["doctor", "--json"]):
        ran, whole = await asyncio.gather(public(*arguments), public(*arguments, "--show-secrets"))
        assert token not in ran.out + ran.err
        assert "https://evosaga.example/webhooks/evolution?token=…" in ran.out
        assert "evosaga doctor --show-secrets" in ran.out
        assert f"https://evosaga.example/webhooks/evolution?token={token}" in whole.out


async def test_dev_brings_what_is_missing_and_stops_at_ctrl_c(
    evosaga: Evosaga, pool: Pool, tmp_path: Path
) -> None:
    needed = ("evolution_url", "evolution_api_key", "secret_key")
    bare = evosaga.having(**dict.fromkeys(needed))
    process = await bare.start("dev", "--json")
    try:
        assert process.stdout is not None
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        secret = tmp_path / "state" / "secret-key"
        assert secret.stat().st_mode & 0o777 == 0o600
        assert told["database_url"] is None, "one that was given may hold a password"

        async def at_work() -> bool:
            return await living_workers(pool) > 0

        await eventually(at_work, 20, message="the worker of dev to be up")
        told = {name: told[name] for name in ("evolution_url", "evolution_api_key")}
        made, second, doctor = await asyncio.gather(
            bare(*creation(channel="EVOLUTION")),
            bare("dev"),
            bare.having(**told)("doctor", "--json"),
        )
        assert made.code == 0, made.err
        assert (doctor.code, doctor.json["healthy"]) == (0, True)
        assert {check["check"]: check["verdict"] for check in doctor.json["checks"]}.items() >= {
            (check, "ok") for check in ("schema", "workers", "redis", "commands", "evolution key")
        }
        assert second.code == 2
        assert "is running already" in second.err
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 0, err.decode()
        assert secret.read_text().strip() not in err.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_simulated_evolution_runs_alone_and_keeps_a_journal(
    evosaga: Evosaga, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    process = await evosaga.start(
        "simulate-evolution", f"--journal={journal}", "--api-key=k", "--json"
    )
    assert process.stdout is not None
    told = json.loads(await asyncio.wait_for(process.stdout.readline(), 15))
    here = evosaga.having(evolution_url=told["url"], evolution_api_key="k")
    port = told["url"].rpartition(":")[2]
    doctor, taken = await asyncio.gather(
        here("doctor", "--json"), evosaga("simulate-evolution", "--port", port)
    )
    assert {c["verdict"] for c in doctor.json["checks"] if c["check"].startswith("evol")} == {"ok"}
    assert taken.code == 2
    assert f"can't use port {port}" in taken.err
    process.terminate()
    await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert "/instance/fetchInstances" in journal.read_text()


async def test_without_addresses_the_embedded_servers_are_used_and_keep_what_they_are_told(
    evosaga: Evosaga, open_folder: Path
) -> None:
    folder = open_folder / "kept"
    alone = evosaga.having(database_url=None, redis_url=None, state_dir=str(folder))
    migrated = await alone("migrate")
    assert migrated.code == 0, migrated.err
    assert migrated.err.startswith(f"evosaga: using the embedded Postgres in {folder} (")
    left = await alone(*creation(), "--timeout=0", "--json")  # finds the schema that was kept
    assert (left.code, left.json["status"]) == (1, None)
    assert "using the embedded Postgres and Valkey in" in left.err
