"""WhatsApp as a domain: what a worker of this product runs."""

from collections.abc import Coroutine, Mapping
from typing import Any, Final

from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.domain import Domain
from evosaga.orchestrator.whatsapp import metrics
from evosaga.orchestrator.whatsapp.conditions import PHONES, of_integrations, of_servers
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.orchestrator.whatsapp.jobs import jobs_of
from evosaga.orchestrator.whatsapp.reconciliation.forgotten import leftovers
from evosaga.orchestrator.whatsapp.redis_use import REDIS_USE
from evosaga.orchestrator.whatsapp.services import open_services
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.orchestrator.whatsapp.webhooks.processor import InboxProcessor
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp import integration_events
from evosaga.sagas.whatsapp.services import Services


def _parts(
    pool: Pool, redis: Redis, services: Services, worker: str
) -> Mapping[str, Coroutine[Any, Any, None]]:
    return {"webhooks": InboxProcessor(pool, redis, services, worker).run()}


WHATSAPP: Final[Domain[Services]] = Domain(
    sagas=discover(),
    open_services=open_services,
    streams=(wa_events.STREAM,),
    redis=REDIS_USE,
    on_rewind=integration_events.tell_again,
    explain=lambda services: explainer(services.servers),
    jobs=jobs_of,
    parts=_parts,
    metrics=metrics.of_servers,
    conditions=of_integrations,
    codes=(PHONES,),
    own_conditions=of_servers,
    leftovers=leftovers,
    name="whatsapp",
    essential=True,
)
