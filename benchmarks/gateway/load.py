"""Drive the load client (native/load.c) and read its result."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from benchmarks.gateway.installs import HERE, compiled
from benchmarks.gateway.recording import MARKER, request_body


class LoadFailed(Exception):
    """The client could not run: nobody accepts its connections."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where a client sends its chat completions: `base_url` ends before `/chat/completions`."""

    base_url: str
    headers: Mapping[str, str] = {}
    model: str = "bench"
    paced_model: str = "bench-paced"


class Times(msgspec.Struct, frozen=True):
    """Microseconds."""

    p50: float
    p99: float
    mean: float


class Load(msgspec.Struct, frozen=True):
    """What one run of the client saw; `good` answers were complete and checked."""

    good: int
    bad: int
    seconds: float
    events: int
    bytes: int
    connects: int
    first_bad: str
    latency_us: Times
    first_us: Times

    @property
    def rate(self) -> float:
        """Complete answers a second."""
        return self.good / self.seconds if self.seconds > 0 else 0.0

    @property
    def event_rate(self) -> float:
        """Server-sent events a second."""
        return self.events / self.seconds if self.seconds > 0 else 0.0


def run_load(
    endpoint: Endpoint,
    *,
    clients: int,
    stream: bool,
    warm_up_s: float,
    measure_s: float,
    cpus: Sequence[int],
    folder: Path,
    paced: bool = False,
    requests_max: int = 0,
) -> Load:
    """Run the client against `endpoint`; with `requests_max` it stops after that many answers.

    Raises `LoadFailed`.
    """
    url = urlsplit(endpoint.base_url)
    body = request_body(endpoint.paced_model if paced else endpoint.model, stream=stream)
    lines = [
        f"POST {url.path}/chat/completions HTTP/1.1",
        f"Host: {url.netloc}",
        "Content-Type: application/json",
        *(f"{name}: {value}" for name, value in endpoint.headers.items()),
        f"Content-Length: {len(body)}",
    ]
    request = folder / "request.http"
    request.write_bytes("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    argv = [
        "taskset",
        "-c",
        ",".join(map(str, cpus)),
        str(compiled(HERE / "native" / "load.c")),
        str(url.port),
        str(request),
        str(clients),
        str(round(warm_up_s * 1000)),
        str(round(measure_s * 1000)),
        str(requests_max),
        MARKER,
        str(int(stream)),
    ]
    done = subprocess.run(
        argv, capture_output=True, timeout=warm_up_s + 6 * measure_s + 30, check=False
    )
    if done.returncode != 0:
        raise LoadFailed(done.stderr.decode()[-300:].strip())
    return msgspec.json.decode(done.stdout, type=Load)
