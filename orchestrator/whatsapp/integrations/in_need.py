"""What needs attention, as the front page counts it, as SQL in two forms that mean the same.

``row`` is one of ``healthcare.integrations``. One without a record of a check is as it says itself.
"""

from typing import Final

from evosaga.migrations.search_indexes import WELL

IN_USE: Final = "row.enabled AND row.status::text <> 'deleting'"
_UNCHECKED: Final = """
    SELECT its.id FROM healthcare.integrations AS its
    WHERE its.status::text = 'disconnected' AND its.enabled
      AND its.type = 'whatsapp' AND its.provider = 'evolution'
      -- For each by itself: to join all connections takes longer.
      AND (SELECT true FROM evosaga.connections WHERE integration_id = its.id) IS NULL
"""
_NAMED: Final = """
    SELECT instance_name FROM evosaga.sightings
    UNION ALL SELECT instance_name FROM evosaga.open_sagas WHERE status = 'failed'
"""
MAYBE: Final = f"""
    SELECT id, bool_or(certain) AS certain FROM (
        SELECT integration_id AS id, false AS certain FROM evosaga.connections
        WHERE state NOT IN {WELL}
        UNION ALL SELECT id, true FROM ({_UNCHECKED}) AS unchecked
        UNION ALL SELECT its.id, true FROM healthcare.integrations AS its
        WHERE its.config ->> 'instance_name' IN ({_NAMED})
    ) AS every GROUP BY id
"""  # noqa: S608
"""Each id once; one that is not certain needs attention if it is in use. By the partial index of
connections; a LATERAL looks at each row, since to join the whole table takes four times as long."""
NEEDS: Final = f"""(
    (row.id IN (SELECT integration_id FROM evosaga.connections WHERE state NOT IN {WELL})
     OR row.status::text = 'disconnected'
        AND (SELECT true FROM evosaga.connections WHERE integration_id = row.id) IS NULL)
    AND {IN_USE}
    OR row.config ->> 'instance_name' IN ({_NAMED})
)"""  # noqa: S608
"""A condition of one row, for what a search has found and for reading in order. Below OR, Postgres
reads those in need once and hashes them: a look at each row took about 7 us, 0.7 s at 100,000."""
