"""What the tests of the housekeeping share: a keeper, and worlds that have drifted."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import Reconciler
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.tls import trusted
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from tests.conftest import API_KEY, SECRET
from tests.support.commandline import Evosaga

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def outside(
    redis: Redis, evolution: SimulatedEvolution, pool: Pool
) -> AsyncIterator[Services]:
    """What a look may touch."""
    api = EvolutionApi(evolution.url, API_KEY, timeout=5.0)
    async with api, httpx.AsyncClient(trust_env=False, verify=trusted()) as http:
        yield Services(
            {"default": api}, redis, http, KeyRing([SECRET]), quiet_seconds=0.3, pool=pool
        )


@pytest.fixture
async def keeper(pool: Pool, outside: Services) -> Reconciler:
    """Reconciles without waiting between two looks; workers carry out what it asks for."""
    gate = CommandHandler(pool, EventLog(pool), outside, discover())
    return Reconciler(pool, outside, gate, ("*{organization_id}*", "*{clinic_id}*"), quiet=0.0)


@pytest.fixture
async def doctor(pool: Pool, outside: Services) -> HealthMonitor:
    return HealthMonitor(pool, outside, alert_after=900.0)


@dataclass(frozen=True)
class Rows:
    """Rows of ``healthcare.integrations``, as people and older code write them."""

    pool: Pool

    async def insert(
        self,
        instance_name: str,
        *,
        organization_id: uuid.UUID | None = None,
        id: uuid.UUID | None = None,
        status: str = "connected",
        enabled: bool = True,
        number: str | None = None,
        clinic_id: str | None = None,
    ) -> uuid.UUID:
        id = id or uuid.uuid4()
        await self.pool.execute(
            """
            INSERT INTO healthcare.integrations
                (id, organization_id, status, enabled, config, whatsapp_number)
            VALUES ($1, $2, $3, $4, jsonb_strip_nulls(
                jsonb_build_object('instance_name', $5::text, 'clinic_id', $6::text)), $7)
            """,
            id,
            organization_id or uuid.uuid4(),
            status,
            enabled,
            instance_name,
            clinic_id,
            number,
        )
        return id

    async def of(self, instance_name: str) -> dict[str, Any]:
        row = await self.pool.fetchrow(
            "SELECT * FROM healthcare.integrations WHERE config ->> 'instance_name' = $1",
            instance_name,
        )
        assert row is not None, f"no row names {instance_name}"
        return dict(row)

    async def count(self) -> int:
        number: int = await self.pool.fetchval("SELECT count(*) FROM healthcare.integrations")
        return number


@pytest.fixture
def rows(pool: Pool) -> Rows:
    return Rows(pool)


@pytest.fixture
def evosaga(settings: Settings, tmp_path: Path) -> Evosaga:
    return Evosaga(tmp_path, hasty=True).having(
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        evolution_url=settings.evolution_url,
        evolution_api_key=API_KEY,
        secret_key=SECRET,
    )
