"""Very many finished sagas, made by Postgres itself: what a busy year leaves behind."""

from collections.abc import Callable
from typing import Any, Final

_CHUNK: Final = 50_000


async def fill(
    connection: Any, count: int, say: Callable[[str], None], *, start: int | None = None
) -> None:
    """Append that many completed sagas with the ten events that a create really has."""
    first = start
    if first is None:
        first = await connection.fetchval("SELECT count(*) FROM evosaga.sagas")
    for begin in range(first, first + count, _CHUNK):
        end = min(begin + _CHUNK, first + count)
        async with connection.transaction():
            await connection.execute(_SAGAS, begin, end - 1)
            await connection.execute(_EVENTS, begin, end - 1)
        if count > _CHUNK:
            say(f"{end - first:,} of {count:,} sagas")
    if count > _CHUNK:
        await connection.execute("VACUUM ANALYZE evosaga.sagas")
        await connection.execute("VACUUM ANALYZE evosaga.saga_events")


_ID: Final = "md5(n::text)::uuid"
_SAGAS: Final = f"""
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, organization_id,
    instance_name, command_id, command_hash, correlation_id, next_sequence, created_at)
SELECT {_ID}, 'create-integration', 1, 'completed', 'whatsapp/evolution/' || {_ID}, {_ID},
    'wa-' || {_ID}, {_ID}::text, md5('hash' || n), {_ID}::text, 12,
    '2020-01-01'::timestamptz + make_interval(secs => n % 100000000)
FROM generate_series($1::bigint, $2::bigint) AS n
"""  # constants only
_EVENTS: Final = f"""
INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
SELECT {_ID}, sequence, type, data::jsonb, {_ID}::text
FROM generate_series($1::bigint, $2::bigint) AS n,
    (VALUES
        (0, 'saga.started', '{{"saga":"create-integration","version":1,'
            '"command":"integration.create","command_id":"x","command_hash":"x",'
            '"business_key":"x","input":{{"name":"Sol"}},"facts":{{"key_id":"x"}}}}'),
        (1, 'step.started', '{{"step":"evolution","attempt":1,"worker":"w","lease_seconds":50}}'),
        (2, 'step.succeeded', '{{"step":"evolution","attempt":1,"result":{{}}}}'),
        (3, 'step.started', '{{"step":"postgres","attempt":1,"worker":"w","lease_seconds":0}}'),
        (4, 'step.succeeded', '{{"step":"postgres","attempt":1,"result":{{}}}}'),
        (5, 'step.started', '{{"step":"cache","attempt":1,"worker":"w","lease_seconds":50}}'),
        (6, 'step.succeeded', '{{"step":"cache","attempt":1,"result":{{}}}}'),
        (7, 'step.started', '{{"step":"notify","attempt":1,"worker":"w","lease_seconds":50}}'),
        (8, 'step.succeeded', '{{"step":"notify","attempt":1,"result":{{}}}}'),
        (9, 'step.started', '{{"step":"pair","attempt":1,"worker":"w","lease_seconds":50}}'),
        (10, 'step.succeeded', '{{"step":"pair","attempt":1,"result":{{}}}}'),
        (11, 'saga.completed', '{{}}')
    ) AS told (sequence, type, data)
ORDER BY n, sequence
"""
