"""Alerts over HTTP and on their page, and the metrics that rules and the dashboard stand on."""

import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from evosaga.events.alerts import Condition, observe
from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.metrics import HttpMetrics, exposition
from evosaga.orchestrator.api.pages.runbook import place
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.config.settings import Settings, SettingsError
from evosaga.orchestrator.queries import metrics
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, asked, client_with
from tests.api.pages import signed_in
from tests.project.test_monitoring import FOLDER, paragraphs
from tests.support.metric_lint import faults
from tests.support.receiving import StubReceiver, free_port, receiving


@pytest.fixture
async def stub() -> AsyncIterator[StubReceiver]:
    async with receiving() as stub:
        yield stub


@pytest.fixture
def settings(settings: Settings, stub: StubReceiver) -> Settings:
    more = {
        "alerts_url": SecretStr(stub.url),
        "receivers_private": True,
        "metrics_port": free_port(),
        "runbook_url": "https://wiki.example/runbook",
    }
    return settings.model_copy(update=more)


BROKEN = Condition("breaker/berlin", "breaker", "<b>berlin</b> is away", "mend it", "critical")


async def test_alerts_are_read_by_operators_on_the_page_and_over_http(
    address_: str, pool: Pool, stub: StubReceiver
) -> None:
    await observe(pool, [BROKEN])
    async with client_with(address_, OPERATOR) as client:
        told = (await client.get("/alerts")).json()
        [alert] = [one for one in told["alerts"] if one["code"] == "breaker"]
        assert (alert["severity"], alert["status"]) == ("critical", "pending")
        assert alert["runbook"] == "https://wiki.example/runbook#breaker"
        assert [one["name"] for one in told["receivers"]] == ["alerts"]
        assert stub.url not in str(told), "the address is a secret"
        tested = (await client.post("/alerts/test")).json()
        assert tested == {"receivers": [{"receiver": "alerts", "delivered": True, "error": None}]}
        assert "alert.test" in stub.types()
        stub.status = 410
        [state] = (await client.post("/alerts/test")).json()["receivers"]
        assert "HTTP 410" in state["error"]
        assert (await client.get("/alerts?limit=0")).status_code == 422


async def test_the_page_escapes_what_an_alert_quotes(address_: str, pool: Pool) -> None:
    await observe(pool, [BROKEN])
    async with signed_in(address_, OPERATOR) as browser:
        page = (await browser.get("/ui/alerts")).text
    assert "&lt;b&gt;berlin&lt;/b&gt; is away" in page
    assert 'href="https://wiki.example/runbook#breaker"' in page
    async with signed_in(address_, OUR_KEY) as browser:
        page = (await browser.get("/ui/alerts")).text
    assert "berlin" not in page


async def test_the_runbook_is_a_page_to_which_alerts_and_sagas_lead(address_: str) -> None:
    async with signed_in(address_, OUR_KEY) as browser:
        page = (await browser.get("/ui/runbook")).text
    for code in paragraphs():
        assert f'id="{code}"' in page, code
    assert "](" not in page, "links to other files are text here"
    assert (
        place("https://wiki.example/runbook", "breaker") == "https://wiki.example/runbook#breaker"
    )
    assert place("/ui/runbook", "breaker") == "/ui/runbook#breaker"
    assert place("docs/monitoring/runbook.md", "of_a_saga_of_yours") is None
    assert place("docs/monitoring/runbook.md", None) is None


async def test_a_worker_serves_every_metric_that_the_dashboard_and_the_rules_name(
    address_: str, parts: AppContext
) -> None:
    async with client_with(address_, OPERATOR) as client:
        assert (await client.post(CREATE, json=asked())).status_code == 201
        api = (await client.get("/metrics")).text
    async with httpx.AsyncClient(trust_env=False) as client:
        at = f"http://127.0.0.1:{parts.settings.metrics_port}"
        worker = (await client.get(f"{at}/metrics")).text
        assert (await client.get(f"{at}/")).status_code == 404
    for text in (api, worker):
        assert (
            'evosaga_saga_seconds_count{saga="create-integration",status="completed"} 1.0' in text
        )
        assert re.search(
            r'evosaga_step_attempt_seconds_bucket\{direction="forward",le="60.0",outcome="done",'
            r'saga="create-integration",step="evolution"\} 1.0',
            text,
        )
        for name in ("lease_held 1.0", 'pool_connections{state="used"}', "relay_lag_seconds "):
            assert f"evosaga_{name}" in text
    assert faults(api) + faults(worker) == [], "as Prometheus names metrics"
    exported = set(re.findall(r"^# TYPE (\w+)", f"{api}\n{worker}", re.MULTILINE))
    said = (FOLDER / "alerts.yml").read_text() + (FOLDER / "grafana.json").read_text()
    named = set(re.findall(r"evosaga_[a-z_]+", said))
    plain = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    assert sorted(plain - exported) == []


async def test_a_port_for_metrics_that_is_taken_is_said_at_start(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"EVOSAGA_METRICS_PORT: .*port {port}"):
            async with parts_with_worker(settings.model_copy(update={"metrics_port": port})):
                pass


async def test_many_sagas_are_counted_without_looking_at_each(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FEW", 100)
    await pool.execute(
        "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,"
        " command_hash, correlation_id, next_sequence) SELECT gen_random_uuid(), 's', 1,"
        " CASE WHEN n <= 7 THEN 'failed' WHEN n <= 10 THEN 'compensated' ELSE 'completed' END,"
        " n::text, n::text, '', '', 1 FROM generate_series(1, 1000) AS n"
    )
    await pool.execute("ANALYZE evosaga.sagas")
    found = await metrics.counted(pool)
    there = {status: number for status, number in found.items() if number}
    assert there == {"failed": 7, "compensated": 3, "completed": 990}


def test_a_worker_that_serves_no_metrics_imports_no_library_for_them() -> None:
    code = (
        "import sys, evosaga.orchestrator.app; "
        "print([m for m in ('prometheus_client', 'aiohttp.web') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_without_whatsapp_nothing_of_it_is_counted(settings: Settings) -> None:
    own = {"app": "tests.api.tables_domain:DOMAIN", "whatsapp": False, "metrics_port": None}
    async with parts_with_worker(settings.model_copy(update=own)) as parts:
        told = (await exposition(parts, HttpMetrics())).decode()
    assert "evosaga_alerts_firing" in told
    assert not re.search("integrations|evolution", told)
