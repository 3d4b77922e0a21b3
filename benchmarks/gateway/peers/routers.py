"""Peers that do not bill: the direct upstream, nginx, vllm-router, Portkey's gateway."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.gateway.installs import debian, npm, pin, pin_npm, venv
from benchmarks.gateway.load import Endpoint
from benchmarks.gateway.peers.interface import Place, Spend
from benchmarks.gateway.processes import Child, free_port, listening, wait_ready

_NGINX = """
daemon off;
worker_processes {workers};
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


class _Router:
    """A peer of one process group and no record of spend."""

    name: str
    bills = False
    setup: str

    def __init__(self) -> None:
        self._child: Child | None = None

    def install(self) -> None:
        """Nothing to bring."""

    def children(self) -> list[Child]:
        """The one process group, once it runs."""
        return [self._child] if self._child else []

    def kill(self) -> None:
        """SIGKILL the group."""
        if self._child:
            self._child.kill()
            self._child = None

    def stop(self) -> None:
        """End the group in order."""
        if self._child:
            self._child.stop()
            self._child = None

    def spend(self) -> Spend | None:
        """A router keeps none."""
        return None

    def _run(
        self, argv: list[str | Path], place: Place, port: int, env: dict[str, str] | None = None
    ) -> None:
        self._child = Child(argv, log=place.folder / "log", cpus=place.cpus, env=env)
        wait_ready(self._child, lambda: listening(port), 30)


class Direct(_Router):
    """No gateway: the baseline and the ceiling."""

    name = "direct"
    setup = "the upstream itself"

    def start(self, place: Place) -> Endpoint:
        """The upstream already runs."""
        return Endpoint(f"{place.upstream}/v1")


class Nginx(_Router):
    """Debian's nginx as a reverse proxy."""

    name = "nginx"
    setup = "reverse proxy, keep-alive upstream, no buffering, a worker a core; does not bill"

    def install(self) -> None:
        """Debian package, unpacked."""
        self._program = debian("nginx", "nginx", "nginx-common")

    def start(self, place: Place) -> Endpoint:
        """Start with a generated configuration."""
        port = free_port()
        config = place.folder / "nginx.conf"
        config.write_text(
            _NGINX.format(
                workers=len(place.cpus),
                folder=place.folder,
                upstream=place.upstream_port,
                port=port,
            )
        )
        self._run([self._program, "-p", place.folder, "-c", config], place, port)
        return Endpoint(f"http://127.0.0.1:{port}/v1")


class VllmRouter(_Router):
    """The vLLM project's router (Rust)."""

    name = "vllm-router"
    setup = "one worker URL, round robin, retries and circuit breaker as shipped; does not bill"

    def install(self) -> None:
        """PyPI wheel."""
        self._bin = venv("vllm-router", pin("vllm-router"))

    def start(self, place: Place) -> Endpoint:
        """Start in front of the upstream."""
        port = free_port()
        argv: list[str | Path] = [self._bin / "vllm-router", "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--worker-urls", place.upstream]
        argv += ["--policy", "round_robin", "--log-level", "error"]
        argv += ["--prometheus-port", str(free_port()), "--prometheus-host", "127.0.0.1"]
        self._run(argv, place, port)
        return Endpoint(f"http://127.0.0.1:{port}/v1")


class Portkey(_Router):
    """Portkey's open-source gateway (Node.js)."""

    name = "portkey"
    setup = "headless, production mode, provider openai with a custom host; does not bill"

    def install(self) -> None:
        """npm package; its install scripts are not needed."""
        # Later versions of its HTTP server break its streams (its issue 1389): "immutable" headers.
        older = {"@hono/node-server": "1.13.8"}
        modules = npm("portkey", pin_npm("@portkey-ai/gateway"), overrides=older)
        self._script = modules / "@portkey-ai" / "gateway" / "build" / "start-server.js"

    def start(self, place: Place) -> Endpoint:
        """Start without the browser console."""
        port = free_port()
        node = shutil.which("node") or "node"
        argv: list[str | Path] = [node, self._script, f"--port={port}", "--headless"]
        self._run(argv, place, port, {"NODE_ENV": "production"})
        headers = {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{place.upstream}/v1",
            "Authorization": "Bearer unused",
        }
        return Endpoint(f"http://127.0.0.1:{port}/v1", headers)
