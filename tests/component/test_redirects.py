"""A secret stays with the host that it was meant for, wherever that one leads."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qwenstack.core.redirects import opener


class _Leads(BaseHTTPRequestHandler):
    """`/to/URL` redirects there; anything else says with which secret it was asked."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        _, leads, target = self.path.partition("/to/")
        body = self.headers.get("Authorization", "none").encode()
        self.send_response(302 if leads else 200)
        if leads:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Leads) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield tuple(f"http://127.0.0.1:{each.server_port}" for each in servers)  # type: ignore[misc]
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(url: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": "Bearer secret"})
    with opener().open(request, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_secret_goes_with_a_redirect_on_its_own_host_only(hosts: tuple[str, str]) -> None:
    here, elsewhere = hosts
    assert asked(f"{here}/x") == "Bearer secret"
    assert asked(f"{here}/to//moved") == "Bearer secret"
    assert asked(f"{here}/to/{elsewhere}/x") == "none"
    assert asked(f"{here}/to/{elsewhere}/to/{here}/x") == "none"
