"""What WhatsApp needs of a Redis, and the checks of ``maintenance.redis_checks`` with it."""

from functools import partial
from typing import Final

from evosaga.events import streams
from evosaga.orchestrator.maintenance import redis_checks
from evosaga.orchestrator.maintenance.redis_checks import NOBODY, Needs, trimming
from evosaga.sagas.whatsapp.steps import notify_workers, routing_key

_CACHED: Final = (
    routing_key.key(NOBODY),
    routing_key.filled_key(NOBODY),
    routing_key.qr_key(NOBODY),
    routing_key.qr_limit_key(NOBODY),
    f"evosaga:removed:{NOBODY}",
    f"evosaga:qr-time:{NOBODY}",
    f"evosaga:pairing:{NOBODY}",
)
_DIGEST: Final = f"evosaga:told:{NOBODY}"
NEEDS: Final = Needs(
    names=("~{}whatsapp:instance:*", "~{}wa:*", "&{}wa:instances:*"),
    keys=(*_CACHED, _DIGEST),
    commands=(
        ("EVAL", "return 1", str(len(_CACHED)), *_CACHED),
        ("EVAL", "return 1", "2", streams.WHATSAPP_EVENTS, _DIGEST),
        ("MGET", *_CACHED),
        ("DEL", *_CACHED),
        ("SCAN", "0", "MATCH", routing_key.key("*")),
        ("XADD", streams.WHATSAPP_EVENTS, "*", "data", ""),
    ),
    of_a_worker=(
        ("PUBLISH", notify_workers.ADDED, ""),
        ("PUBLISH", notify_workers.REMOVED, ""),
        *trimming(streams.WHATSAPP_EVENTS),
    ),
)
rights = partial(redis_checks.rights, NEEDS)
require = partial(redis_checks.require, NEEDS)
look = partial(redis_checks.look, NEEDS)
trouble_of = partial(redis_checks.trouble_of, NEEDS)
