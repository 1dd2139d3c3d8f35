"""Clients that generators make of the OpenAPI document, used against a running server.

Long, since the generators are slow; the TypeScript one needs npm and its registry as well.
"""

import asyncio
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.api.conftest import OPERATOR, OURS, THEIRS, client_with
from tests.api.standing import ONES

database_url, redis, evolution, settings, parts, address_ = ONES
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
_SECONDS: Final = 240
_NPM: Final = ("openapi-typescript@7", "openapi-fetch@0", "typescript@5")
_COMPILER: Final = ("--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck")


async def document(where: str, folder: Path) -> Path:
    """The server's document in a file."""
    path = folder / "openapi.json"
    async with client_with(where, None) as client:
        path.write_bytes((await client.get("/openapi.json")).content)
    return path


async def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Any:
    """A finished process, its output joined."""
    return await asyncio.to_thread(
        subprocess.run,
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS,
        check=False,
    )


async def test_openapi_python_client_makes_a_client_that_creates_and_reads(
    address_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")
    path = await document(address_, tmp_path)
    config = tmp_path / "generator.yml"
    config.write_text("post_hooks: []\n")
    made = await run(
        *(sys.executable, "-m", "openapi_python_client", "generate", "--path", path),
        *("--output-path", tmp_path / "made_client", "--meta", "none", "--config", config),
        "--fail-on-warning",
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stdout
    monkeypatch.syspath_prepend(tmp_path)
    await asyncio.to_thread(use_python, address_)


def use_python(where: str) -> None:
    """Create, be refused, list, explain and delete, with the generated client alone."""
    models = importlib.import_module("made_client.models")
    made = importlib.import_module("made_client")

    def route(topic: str, name: str) -> Callable[..., Any]:
        asked: Callable[..., Any] = importlib.import_module(f"made_client.api.{topic}.{name}").sync
        return asked

    with made.AuthenticatedClient(base_url=where, token=OPERATOR, timeout=60) as client:
        body = models.CreateIntegration.from_dict(
            {"organization_id": str(OURS), "clinic_id": str(OURS), "name": "Sol"}
        )
        created = route("integrations", "create_integration")(client=client, body=body)
        assert isinstance(created, models.Created)
        saga = route("sagas", "get_saga")(str(created.saga_id), client=client)
        assert (saga.status, saga.over) == ("completed", True)
        plan = route("sagas", "get_replay_plan")(str(created.saga_id), client=client)
        assert plan.allowed is False
        body.name = ""
        refused = route("integrations", "create_integration")(client=client, body=body)
        assert isinstance(refused, models.Problem)
        assert [field.where for field in refused.fields] == ["body.name"]
        (worker,) = route("operations", "list_workers")(client=client).workers
        assert worker.alive
        gone = route("integrations", "delete_integration")(created.instance_name, client=client)
        assert (gone.success, gone.evolution_deleted) == (True, True)


_PROGRAM: Final = """
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };

const [baseUrl, token, organization_id] = process.argv.slice(2) as [string, string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
const body: components["schemas"]["CreateIntegration"] = {
  organization_id, clinic_id: organization_id, name: "Sol", channel: "EVOLUTION",
};
const { data: made } = await client.POST("/integrations/evolution/create", { body });
if (!made || !("instance_name" in made)) throw new Error("not created");
const { error } = await client.GET("/sagas/{saga_id}", { params: { path: { saga_id: "none" } } });
const { data: page } = await client.GET("/sagas", { params: { query: { organization_id } } });
const { data: health } = await client.GET("/health", { params: { query: { organization_id } } });
console.log(error?.code, page?.sagas.map((saga) => saga.status).join(), health?.connections.length);
"""


async def test_openapi_typescript_makes_types_that_compile_and_a_client_that_works(
    address_: str, tmp_path: Path
) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm is not installed")
    env = {"npm_config_cache": str(tmp_path / "cache"), "npm_config_update_notifier": "false"}
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    got = await run(npm, "install", "--no-audit", "--no-fund", *_NPM, cwd=tmp_path, env=env)
    if got.returncode:
        pytest.skip(f"npm's registry gave no packages: {got.stdout[-300:]}")
    path, programs = await document(address_, tmp_path), tmp_path / "node_modules" / ".bin"
    (tmp_path / "use.mts").write_text(_PROGRAM)
    for command in (
        (programs / "openapi-typescript", path, "-o", tmp_path / "schema.d.ts"),
        (programs / "tsc", *_COMPILER, tmp_path / "use.mts"),
    ):
        done = await run(*command, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stdout
    used = await run(node, tmp_path / "use.mjs", address_, OPERATOR, str(THEIRS), cwd=tmp_path)
    assert used.stdout.split() == ["unknown_saga", "completed", "1"]
