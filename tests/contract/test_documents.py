"""The descriptions that programs read, and the tables that other people's queries read."""

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from evosaga.events.database import Pool
from tests.contract.golden import assert_golden

_COLUMNS = """
SELECT table_schema || '.' || table_name AS relation, column_name, data_type, is_nullable,
       column_default
FROM information_schema.columns WHERE table_schema IN ('evosaga', 'healthcare')
ORDER BY relation, ordinal_position
"""
_INDEXES = """
SELECT schemaname || '.' || tablename AS relation, indexdef FROM pg_indexes
WHERE schemaname IN ('evosaga', 'healthcare') ORDER BY relation, indexdef
"""
_CONSTRAINTS = """
SELECT conrelid::regclass::text AS relation, conname, pg_get_constraintdef(oid) AS definition
FROM pg_constraint WHERE connamespace IN ('evosaga'::regnamespace, 'healthcare'::regnamespace)
    AND contype <> 'n'  -- Postgres 18 lists NOT NULL as well; the columns say it already
ORDER BY relation, conname
"""
_TRIGGERS = """
SELECT tgrelid::regclass::text AS relation, pg_get_triggerdef(t.oid) AS definition
FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
WHERE NOT tgisinternal AND c.relnamespace IN ('evosaga'::regnamespace, 'healthcare'::regnamespace)
ORDER BY relation, tgname
"""
_FUNCTIONS = """
SELECT pronamespace::regnamespace || '.' || proname AS name,
       pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
FROM pg_proc WHERE pronamespace IN ('evosaga'::regnamespace, 'healthcare'::regnamespace)
ORDER BY name, arguments
"""


async def test_the_openapi_document_is_as_promised(operator: httpx.AsyncClient) -> None:
    assert_golden("openapi", (await operator.get("/openapi.json")).json())


async def test_the_asyncapi_document_is_as_promised(operator: httpx.AsyncClient) -> None:
    assert_golden("asyncapi", (await operator.get("/asyncapi.json")).json())


async def test_the_metrics_are_as_promised(operator: httpx.AsyncClient) -> None:
    await operator.post("/webhooks/evolution/nobody")  # a label is told only once it has a value
    text = (await operator.get("/metrics")).text
    metrics = {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "labels": sorted({label for one in family.samples for label in one.labels} - {"le"}),
        }
        for family in text_string_to_metric_families(text)
    }
    assert_golden("metrics", metrics)


async def test_the_tables_are_as_promised(pool: Pool) -> None:
    async def rows(query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await pool.fetch(query)]

    tables = {
        "columns": await rows(_COLUMNS),
        "indexes": await rows(_INDEXES),
        "constraints": await rows(_CONSTRAINTS),
        "triggers": await rows(_TRIGGERS),
        "functions": await rows(_FUNCTIONS),
    }
    assert tables["columns"]
    assert_golden("tables", tables)
