"""The files under ``deploy/``, the image and compose: what can be known of them without a cloud."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosaga.orchestrator.cli.verbs import app
from evosaga.orchestrator.config.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def fly() -> dict[str, Any]:
    return tomllib.loads((DEPLOY / "fly.toml").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def offered() -> set[str]:
    """The variables that the example of ``.env`` asks for."""
    return set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)(s|m)", text)
    assert match
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def test_fly_runs_verbs_and_checks_routes_that_there_are(fly: dict[str, Any]) -> None:
    assert {*fly["processes"].values(), fly["deploy"]["release_command"]} <= set(app)
    paths = {one["path"] for one in [*fly["checks"].values(), *fly["http_service"]["checks"]]}
    assert paths == {"/healthz", "/readyz"}
    groups = set(fly["processes"])
    checked = {group for one in fly["checks"].values() for group in one["processes"]}
    assert checked == groups
    assert (DEPLOY / fly["build"]["dockerfile"]).is_file()


def test_a_process_gets_more_time_to_stop_than_a_call_to_evolution_takes(
    fly: dict[str, Any], compose: dict[str, Any]
) -> None:
    longest = Settings.model_fields["evolution_timeout"].default
    units = [
        float(found)
        for unit in (DEPLOY / "systemd").glob("evosaga-[aw]*.service")
        for found in re.findall(r"TimeoutStopSec=(\d+)", unit.read_text())
    ]
    values = yaml.safe_load((DEPLOY / "helm" / "values.yaml").read_text())
    given = [
        seconds(fly["kill_timeout"]),
        seconds(compose["evosaga"]["stop_grace_period"]),
        values["terminationGracePeriodSeconds"],
        *units,
    ]
    assert len(units) == 2
    assert min(given) >= longest + 10


def test_compose_gives_each_program_a_user_and_a_password_of_its_own(
    compose: dict[str, Any],
) -> None:
    def login(url: str) -> str:
        found = re.match(r"\w+://(\w+:\$\{\w+)", url)
        assert found, url
        return found[1]

    urls = [
        compose["evosaga"]["environment"]["EVOSAGA_DATABASE_URL"],
        compose["migrate"]["environment"]["EVOSAGA_DATABASE_URL"],
        compose["evolution"]["environment"]["DATABASE_CONNECTION_URI"],
        compose["evosaga"]["environment"]["EVOSAGA_REDIS_URL"],
        compose["evolution"]["environment"]["CACHE_REDIS_URI"],
    ]
    logins = [login(url) for url in urls]
    assert len(set(logins)) == len(logins)
    asked = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    assert asked == offered()


def test_the_health_check_of_the_image_asks_nobody_but_the_process() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "/healthz" in text
    assert "evosaga doctor" not in text
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE), "a name may be root's"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if (program := shutil.which("systemd-analyze")) is None:
        pytest.skip("no systemd-analyze on PATH")
    units = []
    for unit in (DEPLOY / "systemd").glob("*.service"):
        text = unit.read_text()
        verbs = re.findall(r"^ExecStart=/opt/evosaga/bin/evosaga (\S+)$", text, re.MULTILINE)
        assert set(verbs) <= set(app)
        units.append(tmp_path / unit.name)
        units[-1].write_text(text.replace("/opt/evosaga/bin/evosaga", "/bin/true"))
    told = subprocess.run(
        [program, "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in (told.stdout + told.stderr).splitlines() if "evosaga" in line]
    assert ours == []


@pytest.mark.parametrize("everything", [False, True])
def test_helm_renders_the_chart(everything: bool) -> None:
    if (program := shutil.which("helm")) is None:
        pytest.skip("no helm on PATH")
    given = [
        "worker.autoscaling.enabled=true",
        "worker.autoscaling.redisAddress=valkey:6379",
        "ingress.enabled=true",
        "podMonitor.enabled=true",
    ]
    chosen = [word for one in given for word in ("--set", one)] if everything else []
    told = subprocess.run(
        [program, "template", "prod", DEPLOY / "helm", *chosen],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    if (conform := shutil.which("kubeconform")) is not None:
        checked = subprocess.run(
            [conform, "-strict", "-skip", "ScaledObject,PodMonitor", "-"],
            input=told.stdout,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout


def test_docker_compose_takes_the_file() -> None:
    program = shutil.which("docker")
    if (
        program is None
        or subprocess.run(
            [program, "compose", "version"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no docker compose")
    told = subprocess.run(
        [program, "compose", "--env-file", "/dev/stdin", "config", "--quiet"],
        input="\n".join(f"{name}=x" for name in offered()),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
