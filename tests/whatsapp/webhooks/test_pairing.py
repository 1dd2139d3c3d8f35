"""Pairing: the code of the moment, asked for as rarely as possible, until a phone is connected."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.integrations.pairing import Pairing, current_qr
from evosaga.orchestrator.whatsapp.webhooks.payloads import ConnectionHint, understand
from tests.support.commandline import forked
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House

ROOT = Path(__file__).parents[3]


@pytest.fixture
def house(shared_house: House) -> House:
    return shared_house


async def ask(house: House, name: str, **how: Any) -> Pairing:
    services = house.parts.services
    return await current_qr(house.pool, house.redis, services.servers, services.keys, name, **how)


def connects(evolution: SimulatedEvolution) -> int:
    return sum(entry.operation == "connect" for entry in evolution.journal.entries)


async def test_the_code_in_redis_is_shown_without_asking_evolution(house: House) -> None:
    name = await house.integration()
    await eventually(lambda: house.redis.exists(f"evosaga:qr:{name}"))
    asked = connects(house.evolution)
    pairing = await ask(house, name)
    assert pairing.state == "qr"
    assert pairing.qr is not None
    assert set(pairing.qr) == {"base64", "code", "pairing_code"}
    assert pairing.qr["base64"]
    assert pairing.qr["base64"].startswith("data:image/png;base64,")
    assert connects(house.evolution) == asked
    assert str(pairing.qr["code"]) not in repr(pairing)


async def test_when_there_is_none_one_of_all_who_look_asks_evolution(house: House) -> None:
    house.evolution.arm("webhook_lost", times=None)
    name = await house.integration()
    await house.redis.delete(f"evosaga:qr:{name}", f"evosaga:pairing:{name}")
    asked = connects(house.evolution)
    found = await asyncio.gather(*(ask(house, name) for _ in range(20)))
    assert {pairing.state for pairing in found} == {"qr"}
    assert len({pairing.qr["code"] for pairing in found if pairing.qr}) == 1
    assert connects(house.evolution) == asked + 1
    assert 0 < await house.redis.ttl(f"evosaga:qr:{name}") <= 60


async def test_a_code_that_does_not_come_is_no_error(house: House) -> None:
    house.evolution.arm("webhook_lost", times=None)
    house.evolution.arm("no_qr", seconds=1)
    name = await house.integration()
    pairing = await ask(house, name)
    assert (pairing.state, pairing.qr) == ("not_yet", None)

    async def there() -> bool:
        return (await ask(house, name)).state == "qr"

    await eventually(there, 30)


async def test_a_scan_is_seen_by_who_is_watching_even_without_webhooks(house: House) -> None:
    house.evolution.arm("webhook_lost", times=None)
    name = await house.integration()
    assert (await ask(house, name, watching=True)).state == "qr"
    house.evolution.pair(name, "5511933332222")

    async def paired() -> bool:
        return (await ask(house, name, watching=True)).state == "paired"

    await eventually(paired)
    row = await house.row(name)
    assert (row["status"], row["whatsapp_number"]) == ("connected", "5511933332222")


async def test_a_paired_instance_that_reconnects_shows_no_old_code(house: House) -> None:
    """Evolution answers with the code of long ago; scanning it would do nothing good."""
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    house.evolution.whatsapp(reachable=False)
    found = [await ask(house, name) for _ in range(20)]
    assert {pairing.state for pairing in found} == {"reconnecting"}
    assert (await house.row(name))["status"] == "connected"
    house.evolution.whatsapp(reachable=True)


async def test_after_a_log_out_a_new_series_of_codes_begins(house: House) -> None:
    name = await house.integration()
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    assert (await ask(house, name)).state == "paired"
    house.evolution.logout(name, 401)
    await house.becomes(name, "disconnected")
    await house.redis.delete(f"evosaga:pairing:{name}")
    assert (await ask(house, name)).state == "qr"


async def test_a_number_gets_a_pairing_code(house: House) -> None:
    house.evolution.arm("webhook_lost", times=None)
    house.evolution.arm("refuse", operation="connect", times=None)
    name = await house.integration()
    house.evolution.disarm()
    await house.redis.delete(f"evosaga:pairing:{name}")
    pairing = await ask(house, name, number="5511999990000")
    assert pairing.qr is not None
    assert len(str(pairing.qr["pairing_code"])) == 8


async def test_where_there_is_nothing_to_pair_that_is_said(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    assert (await ask(house, name)).state == "not_needed"
    asked = connects(house.evolution)
    assert (await ask(house, "unknown-instance")).state == "absent"
    assert connects(house.evolution) == asked


async def test_an_instance_that_is_gone_or_somebody_elses_is_not_connected(house: House) -> None:
    name = await house.integration()
    await house.redis.delete(f"evosaga:qr:{name}")
    for take_away in (house.evolution.drop, house.evolution.foreign):
        take_away(name)
        asked = connects(house.evolution)
        await house.redis.delete(f"evosaga:qr:{name}")
        assert (await ask(house, name, watching=True)).state == "absent"
        assert connects(house.evolution) == asked


async def test_an_evolution_that_does_not_answer_is_said_to_be_unavailable(house: House) -> None:
    name = await house.integration()
    await eventually(lambda: house.redis.exists(f"evosaga:qr:{name}"))
    house.evolution.arm("5xx_before", times=None)
    assert (await ask(house, name, watching=True)).state == "qr", "it may be good for a while yet"
    house.evolution.arm("webhook_lost", times=None)
    await house.redis.delete(f"evosaga:qr:{name}")
    assert (await ask(house, name, watching=True)).state == "unavailable"


async def test_without_evolution_what_redis_has_is_shown(house: House) -> None:
    name = await house.integration()
    await eventually(lambda: house.redis.exists(f"evosaga:qr:{name}"))
    pairing = await current_qr(house.pool, house.redis, None, None, name)
    assert pairing.state == "qr"
    house.evolution.pair(name)
    await house.becomes(name, "connected")
    pairing = await current_qr(house.pool, house.redis, None, None, name)
    assert pairing.state == "paired"


class TestWhatComesLate:
    @staticmethod
    def code(at: str, code: str) -> ConnectionHint:
        shown = {"code": code, "base64": "data:image/png;base64,xx", "pairingCode": None}
        told = understand(
            {
                "event": "qrcode.updated",
                "instance": "ours",
                "data": {"qrcode": shown},
                "date_time": at,
            }
        )
        assert isinstance(told, ConnectionHint)
        return told

    async def test_an_older_code_does_not_replace_a_newer_one(self, house: House) -> None:
        name = await house.integration(channel="EVOLUTION")
        for at, code in (("12:00:45", "2@new"), ("12:00:00", "2@old")):
            shown = {"code": code, "base64": "data:image/png;base64,xx", "pairingCode": None}
            moment = f"2026-01-01T{at}.000Z"
            answer = await house.deliver(name, "qrcode.updated", {"qrcode": shown}, at=moment)
            assert answer.json() == {"status": "stored"}
        kept = json.loads(await house.redis.get(f"evosaga:qr:{name}") or b"")
        assert kept["code"] == "2@new"


class Command:
    """`evosaga qr` as a process of its own."""

    def __init__(self, settings: Settings, cwd: Path) -> None:
        assert settings.evolution_api_key
        assert settings.secret_key
        self.cwd = cwd
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("EVOSAGA_")},
            "EVOSAGA_DATABASE_URL": str(settings.database_url),
            "EVOSAGA_REDIS_URL": str(settings.redis_url),
            "EVOSAGA_EVOLUTION_URL": str(settings.evolution_url),
            "EVOSAGA_EVOLUTION_API_KEY": settings.evolution_api_key.get_secret_value(),
            "EVOSAGA_SECRET_KEY": settings.secret_key.get_secret_value(),
            "PYTHONPATH": str(ROOT),
        }

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "evosaga.orchestrator.cli",
            "qr",
            *arguments,
            env=self.environment,
            cwd=self.cwd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        ran = await forked(("qr", *arguments), self.environment, self.cwd)
        return ran.code, ran.out, ran.err


@pytest.fixture
def qr(house: House, tmp_path: Path) -> Command:
    return Command(house.parts.settings, tmp_path)


class TestTheVerb:
    async def test_shows_a_code_that_can_be_scanned(self, house: House, qr: Command) -> None:
        name = await house.integration()
        code, out, _ = await qr(name)
        assert code == 0
        assert "scan it with WhatsApp" in out
        assert "█" in out
        code, out, _ = await qr(name, "--json")
        told = json.loads(out)
        assert (code, told["state"], told["instance_name"]) == (0, "qr", name)
        assert told["qr_code"]["code"].startswith("2@")

    async def test_follows_until_the_phone_is_connected(self, house: House, qr: Command) -> None:
        name = await house.integration()
        process = await qr.start(name, "--follow", "--json")
        assert process.stdout is not None
        first = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert first["state"] == "qr"
        house.evolution.pair(name)
        rest, _ = await asyncio.wait_for(process.communicate(), 30)
        states = [json.loads(line)["state"] for line in rest.splitlines()]
        assert states[-1] == "paired"
        assert process.returncode == 0
        assert (await house.row(name))["status"] == "connected"

    async def test_says_what_is_wrong_and_what_to_do(self, house: House, qr: Command) -> None:
        code, _, err = await qr("unknown-instance")
        assert code == 2
        assert "no integration has the instance unknown-instance" in err
        assert "evosaga list" in err
        code, _, err = await qr("unknown-instance", "--number", "letters")
        assert code == 2
        assert "6 to 20 digits" in err
        name = await house.integration(channel="EVOLUTION")
        code, out, _ = await qr(name)
        assert (code, out.strip()) == (0, f"{name}: this channel has no phone to pair")
