"""What WhatsApp needs of Redis: routing keys, QR codes, a stream and two channels."""

from typing import Final

from evosaga.orchestrator.maintenance.redis_rights import (
    NOBODY,
    RedisCommand,
    RedisUse,
    text,
    trimming,
)
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.sagas.whatsapp.steps import notify_workers, routing_key

_DIGEST: Final = wa_events.told_key(NOBODY)
_CACHED: Final = (
    routing_key.key(NOBODY),
    routing_key.filled_key(NOBODY),
    routing_key.qr_key(NOBODY),
    routing_key.qr_limit_key(NOBODY),
    f"evosaga:removed:{NOBODY}",
    f"evosaga:qr-time:{NOBODY}",
    f"evosaga:pairing:{NOBODY}",
)
_ALWAYS: Final[tuple[RedisCommand, ...]] = (
    ("EVAL", "return 1", str(len(_CACHED)), *_CACHED),
    ("EVAL", "return 1", "2", wa_events.STREAM, _DIGEST),
    ("MGET", *_CACHED),
    ("DEL", *_CACHED),
    ("SCAN", "0", "MATCH", routing_key.key("*")),
    ("XADD", wa_events.STREAM, "*", "data", ""),
    *(command for key in (*_CACHED, _DIGEST) for command in text(key)),
)
_OF_WORKER: Final[tuple[RedisCommand, ...]] = (
    ("PUBLISH", notify_workers.ADDED, ""),
    ("PUBLISH", notify_workers.REMOVED, ""),
    *trimming(wa_events.STREAM),
)
REDIS_USE: Final = RedisUse(
    ("~{}whatsapp:instance:*", "~{}wa:*", "&{}wa:instances:*"), _ALWAYS, _OF_WORKER
)
