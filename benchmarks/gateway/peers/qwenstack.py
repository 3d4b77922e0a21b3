"""QwenStack as this checkout has it, with durable billing, limits and a budget on.

Set up through its own command line: a prepaid workspace with money, a plan with every limit set
(too high to be reached, but counted), a monthly budget, and one remote engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from benchmarks.gateway.installs import Unavailable
from benchmarks.gateway.load import Endpoint
from benchmarks.gateway.peers.interface import Place, Spend
from benchmarks.gateway.processes import Child, free_port, wait_ready

_CONFIGURATION = """
[server]
port = {port}

[log]
level = "warning"

[[deployments]]
name = "bench"
[deployments.engine]
kind = "openai_http"
urls = ["{upstream}/v1"]
upstream_model = "bench"
dialect = "vllm"

[[deployments]]
name = "bench-paced"
[deployments.engine]
kind = "openai_http"
urls = ["{upstream}/v1"]
upstream_model = "bench-paced"
dialect = "vllm"
"""
_PLAN = """
id = "bench"
[per_model]
requests_per_minute = 100_000_000
tokens_per_minute = 1_000_000_000_000
concurrency = 10_000
[per_key]
requests_per_minute = 100_000_000
tokens_per_minute = 1_000_000_000_000
concurrency = 10_000
"""


class QwenStack:
    """`qwenstack serve` over SQLite."""

    name = "qwenstack"
    bills = True
    setup = (
        "`qwenstack serve`, one process, SQLite with every bill durable before the last byte, "
        "prepaid workspace, key, plan limits and a budget on"
    )

    def __init__(self) -> None:
        self._program = Path(sys.executable).parent / "qwenstack"
        self._child: Child | None = None
        self._home: Path | None = None
        self._key = ""

    def install(self) -> None:
        """It is in the environment that runs this."""
        if not self._program.exists():
            raise Unavailable(f"{self._program} does not exist; run `make install` first")

    def start(self, place: Place) -> Endpoint:
        """Make the home folder (once), then serve it."""
        port = free_port()
        home = place.folder / "home"
        home.mkdir(exist_ok=True)
        configuration = _CONFIGURATION.format(port=port, upstream=place.upstream)
        (home / "qwenstack.toml").write_text(configuration)
        if self._home is None:
            self._home = home
            self._key = self._provision(place.folder)
        log = place.folder / "log"
        env = {"QWENSTACK_HOME": str(home)}
        self._child = Child([self._program, "serve"], log=log, cpus=place.cpus, env=env)
        # It listens before it has written what a killed process left behind.
        wait_ready(self._child, lambda: _ready(port), 30)
        headers = {"Authorization": f"Bearer {self._key}"}
        return Endpoint(f"http://127.0.0.1:{port}/v1", headers)

    def children(self) -> list[Child]:
        """The server."""
        return [self._child] if self._child else []

    def kill(self) -> None:
        """SIGKILL the server."""
        if self._child:
            self._child.kill()
            self._child = None

    def stop(self) -> None:
        """End the server and forget its home."""
        if self._child:
            self._child.stop(grace_s=25)
            self._child = None
        self._home = None

    def spend(self) -> Spend | None:
        """What `qwenstack usage` says."""
        if self._home is None:
            return None
        lines = json.loads(self._admin("usage", "--period", "7d", "--json"))["lines"]
        requests = sum(line["requests"] for line in lines)
        return Spend(requests, sum(line["usage"]["completion"] for line in lines))

    def _provision(self, folder: Path) -> str:
        plan = folder / "plan.toml"
        plan.write_text(_PLAN)
        self._admin("admin", "plans", "put", str(plan))
        self._admin("admin", "workspaces", "create", "bench", "--plan", "bench")
        self._admin("admin", "top-up", "bench", "1000000")
        self._admin("admin", "budget", "bench", "1000000", "--period", "month")
        made = self._admin(
            "admin", "keys", "create", "--workspace", "bench", "--name", "bench", "--json"
        )
        return str(json.loads(made)["api_key"])

    def _admin(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._program), *arguments],
            env={**os.environ, "QWENSTACK_HOME": str(self._home)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            reason = " ".join((done.stderr or done.stdout).split())[-300:]
            raise Unavailable(f"`qwenstack {' '.join(arguments[:3])}` failed: {reason}")
        return done.stdout


def _ready(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/readyz"
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
