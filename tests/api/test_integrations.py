"""What is there: one integration, its QR code, and how far the pairing is."""

import uuid

import httpx
from redis.asyncio import Redis

from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import CREATE, OURS, asked, problem
from tests.support.waiting import eventually


async def test_an_integration_tells_its_state_and_its_newest_saga_and_no_secret(
    operator: httpx.AsyncClient,
) -> None:
    body = asked()
    made = (await operator.post(CREATE, json=body)).json()
    path = f"/integrations/evolution/{made['instance_name']}"
    told = (await operator.get(path)).json()
    assert told == {
        "integration_id": made["saga_id"],
        "organization_id": str(OURS),
        "clinic_id": body["clinic_id"],
        "instance_name": made["instance_name"],
        "name": "Clínica Sol",
        "channel": "EVOLUTION",
        "status": told["status"],
        "enabled": True,
        "whatsapp_number": None,
        "webhook_url": None,
        "server": "default",
        "created_at": told["created_at"],
        "updated_at": told["updated_at"],
        "last_saga": {
            "saga_id": made["saga_id"],
            "saga": "create-integration",
            "status": "completed",
        },
        "connection": told["connection"],
        "connection_since": told["connection_since"],
    }
    assert (await operator.get("/integrations")).json()["integrations"] == [told]
    # A duplicate that was refused has nothing to do with it.
    await operator.post(CREATE, json=asked())
    assert (await operator.get(path)).json()["last_saga"]["saga_id"] == made["saga_id"]


async def test_the_qr_code_is_there_until_the_phone_is_paired(
    ours: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    made = (await ours.post(CREATE, json=asked(channel="WHATSAPP-BAILEYS"))).json()
    path = f"/integrations/evolution/{made['instance_name']}"
    first = await ours.get(f"{path}/qr")
    assert first.status_code == 200
    assert first.json()["qr_code"]["base64"] == made["qr_code"]["base64"]
    evolution.pair(made["instance_name"])

    async def paired() -> bool:
        answer = await ours.get(f"{path}/qr?again=true")
        if answer.status_code == 200:
            return False
        told = problem(answer)
        return (told["code"], told["state"]) == ("already_connected", "paired")

    await eventually(paired, 30)
    assert (await ours.get(path)).json()["status"] == "connected"


async def test_a_qr_code_that_is_gone_is_asked_for_again(
    ours: httpx.AsyncClient, redis: Redis
) -> None:
    made = (await ours.post(CREATE, json=asked(channel="WHATSAPP-BAILEYS"))).json()
    await redis.delete(f"evosaga:qr:{made['instance_name']}")

    async def there() -> bool:
        answer = await ours.get(f"/integrations/evolution/{made['instance_name']}/qr")
        return answer.status_code == 200 and bool(answer.json()["qr_code"]["base64"])

    await eventually(there, 30)


async def test_while_evolution_is_away_the_last_qr_code_is_shown_as_long_as_it_is_kept(
    ours: httpx.AsyncClient, evolution: SimulatedEvolution, redis: Redis
) -> None:
    made = (await ours.post(CREATE, json=asked(channel="WHATSAPP-BAILEYS"))).json()
    path = f"/integrations/evolution/{made['instance_name']}/qr"
    evolution.arm("5xx_before", operation="connectionState", times=None)
    evolution.arm("5xx_before", operation="fetch", times=None)
    assert (await ours.get(path)).json()["qr_code"] == made["qr_code"]
    await redis.delete(f"evosaga:qr:{made['instance_name']}")
    answer = await ours.get(path)
    assert (answer.status_code, problem(answer)["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_without_a_qr_code_the_reason_is_told(
    ours: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    name = (await ours.post(CREATE, json=asked())).json()["instance_name"]
    answer = await ours.get(f"/integrations/evolution/{name}/qr")
    told = problem(answer)
    assert (answer.status_code, told["code"], told["state"]) == (409, "no_qr_code", "not_needed")
    wrong = await ours.get(f"/integrations/evolution/{name}/qr?number=call-me")
    assert wrong.status_code == 422
    absent = await ours.get(f"/integrations/evolution/wa-{uuid.uuid4()}/qr")
    assert problem(absent)["code"] == "unknown_instance"
