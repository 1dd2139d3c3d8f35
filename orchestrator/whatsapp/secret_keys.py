"""Sagas that were begun under a secret key which this process does not have.

What is made is recognised by a birthmark that only the key can derive, so a worker with another
``EVOSAGA_SECRET_KEY`` can't go on with them. It holds them (``secret_key_unknown``) and leaves
them to those who can: no attempt is burned and nothing is parked.
"""

from typing import Final

from evosaga.events.database import Queryable
from evosaga.sagas.whatsapp.ownership import KeyRing

CURE: Final = (
    "give every worker the same EVOSAGA_SECRET_KEY; while a key is being rotated the old one "
    "stays in it, behind the new one"
)


async def unknown_keys(pool: Queryable, keys: KeyRing) -> list[str]:
    """A sentence for each key that open or new sagas were begun under and that is not here."""
    rows = await pool.fetch(_UNKNOWN, list(keys.ids))
    return [
        f"{row['sagas']} of the open and newest sagas were begun under secret key "
        f"{row['key_id']}, which EVOSAGA_SECRET_KEY here does not have"
        for row in rows
    ]


_UNKNOWN: Final = """
SELECT left(born.facts ->> 'key_id', 20) AS key_id, count(*) AS sagas
FROM ((SELECT saga_id FROM evosaga.open_sagas LIMIT 1000)
      UNION
      (SELECT saga_id FROM evosaga.sagas ORDER BY created_at DESC, saga_id DESC LIMIT 1000)
     ) AS looked_at
JOIN evosaga.saga_starts AS born USING (saga_id)
WHERE born.facts ->> 'key_id' <> ALL($1)
GROUP BY 1 ORDER BY 1 LIMIT 20
"""
