"""The LiteLLM proxy with its PostgreSQL database, a virtual key and a budget.

Set up as its documentation recommends for production: no access log, a worker a core, no cost map
fetched at start. Its database client (Prisma) needs an engine that is not on any package registry
in native form; prisma_engine.cjs serves the WebAssembly build of the same engine instead. The hot
path does not wait for it: keys are cached, and spend is written in batches (10 s and up).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.gateway.installs import HERE, Unavailable, npm, pin, pin_npm, venv
from benchmarks.gateway.load import Endpoint
from benchmarks.gateway.peers.interface import Place, Spend
from benchmarks.gateway.postgres import Postgres
from benchmarks.gateway.processes import Child, free_port, wait_ready

_ENGINE = HERE / "peers" / "prisma_engine.cjs"
_START_TIMEOUT_S = 180
_CONFIG = """
model_list:
  - model_name: bench
    litellm_params: &upstream
      model: openai/bench
      api_base: {upstream}/v1
      api_key: unused
      input_cost_per_token: 0.0000001
      output_cost_per_token: 0.0000004
  - model_name: bench-paced
    litellm_params:
      <<: *upstream
      model: openai/bench-paced
general_settings:
  master_key: {master}
  database_url: {database}
"""
_QUIET = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {
        "uvicorn": {"level": "ERROR"},
        "uvicorn.error": {"level": "ERROR"},
        "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
    },
}


class LiteLlm:
    """LiteLLM proxy over PostgreSQL."""

    name = "litellm"
    bills = True
    setup = (
        "proxy with PostgreSQL, virtual key with a budget, a uvicorn worker a core, access log "
        "off, local cost map; spend written in batches as shipped; Prisma's engine as WebAssembly"
    )

    def __init__(self) -> None:
        self._database: Postgres | None = None
        self._child: Child | None = None
        self._master = f"sk-{secrets.token_hex(24)}"
        self._key = ""

    def install(self) -> None:
        """Python packages, Prisma's Node packages, the generated database client."""
        self._bin = venv("litellm", pin("litellm"), pin("prisma"))
        self._node = _prisma_packages()
        schema = next(self._bin.parent.rglob("litellm_proxy_extras/schema.prisma"))
        self._migrations = sorted(schema.parent.glob("migrations/*/migration.sql"))
        _generate_client(self._bin, self._node, schema)

    def start(self, place: Place) -> Endpoint:
        """Start the database (once) and the proxy; make the key (once)."""
        if self._database is None:
            database = Postgres(place.folder, place.cpus)
            database.start()
            self._database = database
            database.run_files(self._migrations)
        port = free_port()
        config = place.folder / "config.yaml"
        config.write_text(
            _CONFIG.format(
                upstream=place.upstream, master=self._master, database=self._database.url
            )
        )
        quiet = place.folder / "logging.json"
        quiet.write_text(json.dumps(_QUIET))
        argv: list[str | Path] = [self._bin / "litellm", "--config", config]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        argv += ["--num_workers", str(len(place.cpus)), "--log_config", quiet]
        env = {
            **_prisma_environment(self._bin, self._node),
            "DATABASE_URL": self._database.url,
            "DISABLE_SCHEMA_UPDATE": "True",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_TELEMETRY": "False",
        }
        log = place.folder / "log"
        self._child = Child(argv, log=log, cpus=place.cpus, env=env, cwd=place.folder)
        root = f"http://127.0.0.1:{port}"
        wait_ready(self._child, lambda: _answers(f"{root}/health/readiness"), _START_TIMEOUT_S)
        if not self._key:
            self._key = self._make_key(root)
        return Endpoint(f"{root}/v1", {"Authorization": f"Bearer {self._key}"})

    def children(self) -> list[Child]:
        """The proxy and its database."""
        database = self._database.child if self._database else None
        return [child for child in (self._child, database) if child]

    def kill(self) -> None:
        """SIGKILL the proxy; the database lives on."""
        if self._child:
            self._child.kill()
            self._child = None

    def stop(self) -> None:
        """End proxy and database; forget the key that was in it."""
        if self._child:
            self._child.stop()
            self._child = None
        if self._database:
            self._database.stop()
            self._database = None
        self._key = ""

    def spend(self) -> Spend | None:
        """Rows of its spend log."""
        if self._database is None:
            return None
        time.sleep(1)
        row = self._database.run_sql(
            'select count(*), coalesce(sum(completion_tokens), 0) from "LiteLLM_SpendLogs" '
            "where call_type like '%completion%'"
        )
        requests, tokens = row.split("|")
        return Spend(int(requests), int(tokens))

    def _make_key(self, root: str) -> str:
        body = json.dumps({"models": ["bench", "bench-paced"], "max_budget": 1_000_000}).encode()
        request = urllib.request.Request(f"{root}/key/generate", data=body, method="POST")
        request.add_header("Authorization", f"Bearer {self._master}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(json.load(answer)["key"])
        except urllib.error.HTTPError as error:
            raise Unavailable(f"no virtual key: {error.read().decode()[:300]}") from error


def _prisma_packages() -> Path:
    names = ("@prisma/client", "@prisma/adapter-pg", "prisma", "pg", "graphql")
    return npm("prisma", *(pin_npm(name) for name in names))


def _prisma_environment(venv_bin: Path, node_modules: Path) -> dict[str, str]:
    return {
        "PATH": f"{venv_bin}:{os.environ.get('PATH', '')}",
        "NODE_PATH": str(node_modules),
        "PRISMA_BINARY_CACHE_DIR": str(node_modules.parent),
        "PRISMA_QUERY_ENGINE_BINARY": str(_ENGINE),
        "PRISMA_SCHEMA_ENGINE_BINARY": str(_ENGINE),
    }


def _generate_client(venv_bin: Path, node_modules: Path, schema: Path) -> None:
    stamp = venv_bin.parent / "client-generated"
    if stamp.exists():
        return
    folder = venv_bin.parent / "generate"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # The list of platforms would ask for a native engine of each.
    lines = [x for x in schema.read_text().splitlines() if "binaryTargets" not in x]
    (folder / "schema.prisma").write_text("\n".join(lines))
    done = subprocess.run(
        [str(venv_bin / "prisma"), "generate", "--schema", "schema.prisma"],
        cwd=folder,
        env={
            **os.environ,
            **_prisma_environment(venv_bin, node_modules),
            "DATABASE_URL": "postgresql://unused/unused",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"its database client was not generated: {done.stderr[-300:]}")
    stamp.touch()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
