"""The harness itself: its client must count what is complete, and only that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gateway import report
from benchmarks.gateway.installs import HERE, compiled
from benchmarks.gateway.load import Endpoint, Load, run_load
from benchmarks.gateway.processes import Child, free_port, listening, wait_ready
from benchmarks.gateway.recording import make_recording, write_recording
from benchmarks.gateway.results import Kill, PeerState, Results, Sample, Setup

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("taskset")),
    reason="the benchmark's client is C and pinned: needs cc and taskset",
)


@pytest.fixture
def stream_file(tmp_path: Path) -> Path:
    return write_recording(tmp_path)[0]


@pytest.fixture
def endpoint(tmp_path: Path, stream_file: Path) -> Iterator[Endpoint]:
    port = free_port()
    argv: list[str | Path] = [compiled(HERE / "native" / "upstream.c"), str(port), stream_file]
    argv += [tmp_path / "whole.json", "1000"]
    child = Child(argv, log=tmp_path / "log", cpus=[0])
    wait_ready(child, lambda: listening(port), 5)
    yield Endpoint(f"http://127.0.0.1:{port}/v1")
    child.stop()


def load(endpoint: Endpoint, folder: Path, *, stream: bool, paced: bool = False) -> Load:
    return run_load(
        endpoint,
        clients=4,
        stream=stream,
        paced=paced,
        warm_up_s=0,
        measure_s=10,
        cpus=[0],
        folder=folder,
        requests_max=40,
    )


@pytest.mark.parametrize("paced", [False, True])
def test_every_event_of_every_stream_is_counted(
    endpoint: Endpoint, tmp_path: Path, paced: bool
) -> None:
    seen = load(endpoint, tmp_path, stream=True, paced=paced)
    events = make_recording().stream.count(b"data:")
    assert (seen.good, seen.bad, seen.events) == (40, 0, 40 * events)


def test_a_whole_answer_is_counted_once(endpoint: Endpoint, tmp_path: Path) -> None:
    seen = load(endpoint, tmp_path, stream=False)
    assert (seen.good, seen.bad, seen.events) == (40, 0, 0)


@pytest.mark.parametrize(
    "lost", [b"quicksilver", b'"usage":{', b"data: [DONE]\n\n"], ids=["text", "usage", "done"]
)
def test_an_answer_that_lacks_its_end_is_never_good(
    stream_file: Path, tmp_path: Path, request: pytest.FixtureRequest, lost: bytes
) -> None:
    stream_file.write_bytes(stream_file.read_bytes().replace(lost, b""))
    endpoint = request.getfixturevalue("endpoint")
    seen = load(endpoint, tmp_path, stream=True)
    assert (seen.good, seen.bad) == (0, 40)


def test_the_report_names_what_was_not_measured_and_says_what_a_kill_lost(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    sample = load(endpoint, tmp_path, stream=True)
    results = Results("command", "machine", "date", setups=[Setup("split", (0,), (1,))])
    results.peers = {"direct": PeerState("upstream"), "absent": PeerState("x", "no registry")}
    results.samples = [Sample("split", "direct", "stream", 32, 0, 0, sample)]
    results.kills = [Kill("lossy", 100, 60, 0), Kill("lossy", 100, 80, 0)]
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\n\nBefore.\n")
    for _ in range(2):
        report.publish(results, document)
    text = document.read_text()
    assert text.count(report.BEGIN) == 1
    assert "Before." in text
    assert "| absent | not measured |" in text
    assert "Not measured: no registry" in text
    assert "| lossy (2 kills) | 200 | 140 | 60 (30 %) |" in text
