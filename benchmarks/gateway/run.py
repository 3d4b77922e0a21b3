"""Measure QwenStack against its peers in one run, and write the report.

    python -m benchmarks.gateway.run            # everything, about 10 minutes
    python -m benchmarks.gateway.run --quick    # one round, few points, about 2 minutes

README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.gateway import report
from benchmarks.gateway.installs import CACHE, HERE, Unavailable, compiled
from benchmarks.gateway.load import Endpoint, Load, LoadFailed, run_load
from benchmarks.gateway.peers.interface import Peer, Place
from benchmarks.gateway.peers.litellm import LiteLlm
from benchmarks.gateway.peers.qwenstack import QwenStack
from benchmarks.gateway.peers.routers import Direct, Nginx, Portkey, VllmRouter
from benchmarks.gateway.processes import (
    Child,
    StartFailed,
    end_on_signals,
    free_port,
    listening,
    wait_ready,
)
from benchmarks.gateway.recording import write_recording
from benchmarks.gateway.results import Kill, PeerState, Results, Sample, Setup, load_results

PACE_US = 5000
KILL_REQUESTS = 100
KILL_CLIENTS = 8
# Between a peer's turn and the next one's: background work of the last one must be over.
QUIET_S_MAX = 12.0


class Plan(msgspec.Struct, frozen=True):
    """How much to measure."""

    rounds: int
    clients: tuple[int, ...]
    paced_clients: tuple[int, ...]
    shared_clients: tuple[int, ...]
    warm_up_s: float
    measure_s: float
    kills: int


FULL = Plan(3, (1, 8, 32, 64), (1, 32, 64), (32,), 0.3, 1.2, 2)
QUICK = Plan(1, (1, 32), (32,), (), 0.2, 0.8, 1)
PEERS: tuple[type[Peer], ...] = (Direct, Nginx, VllmRouter, Portkey, QwenStack, LiteLlm)


class Bench:
    """One run: the upstream, the peers that could be started, the samples so far."""

    def __init__(self, plan: Plan, folder: Path, results: Results, deadline: float) -> None:
        self._plan = plan
        self._folder = folder
        self._results = results
        self._deadline = deadline

    def measure(self, setup: Setup, peers: Sequence[Peer]) -> None:
        """Start all `peers` under `setup`, then take turns for as many rounds as planned."""
        upstream = self._start_upstream(setup)
        running: list[tuple[Peer, Endpoint]] = []
        try:
            for peer in peers:
                endpoint = self._start(peer, setup, upstream[1])
                if endpoint:
                    running.append((peer, endpoint))
            for number in range(self._plan.rounds):
                for peer, endpoint in running:
                    if time.monotonic() > self._deadline:
                        self._note(f"out of time in round {number} of {setup.name}")
                        return
                    self._turn(setup, peer, endpoint, number)
        finally:
            for peer, _ in running:
                peer.stop()
            upstream[0].stop()

    def kill(self, setup: Setup, peer: Peer) -> None:
        """Let clients complete requests, SIGKILL the gateway at once, restart it, read its books.

        As often as planned, on the same data: each time the answers seen since the last reading are
        held against the requests that came onto the record.
        """
        child, port = self._start_upstream(setup)
        place = self._place(setup, port, f"{peer.name}-kill")
        try:
            endpoint = peer.start(place)
            before = 0
            for _ in range(self._plan.kills):
                load = self._load(setup, endpoint, KILL_CLIENTS, requests_max=KILL_REQUESTS)
                peer.kill()
                endpoint = peer.start(place)
                spend = peer.spend()
                if spend is None:
                    raise StartFailed("it has no record of spend")
                recorded, before = spend.requests - before, spend.requests
                self._results.kills.append(Kill(peer.name, load.good, recorded, load.bad))
                print(f"  {peer.name}: {load.good} complete answers seen, {recorded} on record")
        except (Unavailable, StartFailed, LoadFailed) as error:
            self._note(f"{peer.name}, kill -9: {' '.join(str(error).split())}")
        finally:
            peer.stop()
            child.stop()

    def _turn(self, setup: Setup, peer: Peer, endpoint: Endpoint, number: int) -> None:
        points = [(mode, n) for mode in ("stream", "whole") for n in self._plan.clients]
        points += [("paced", n) for n in self._plan.paced_clients]
        if setup.name == "shared":
            points = [(mode, n) for mode in ("stream", "whole") for n in self._plan.shared_clients]
        for mode, clients in points:
            try:
                load = self._load(setup, endpoint, clients, mode=mode)
            except LoadFailed as error:
                self._note(f"{peer.name}, {setup.name}, round {number}, {mode}: {error}")
                return
            memory = sum(child.memory_bytes() for child in peer.children())
            self._results.samples.append(
                Sample(setup.name, peer.name, mode, clients, number, memory, load)
            )
            print(
                f"  {setup.name} round {number} {peer.name:12} {mode:6} {clients:3} clients: "
                f"{load.rate:9.1f} req/s  p50 {load.latency_us.p50 / 1000:8.3f} ms  "
                f"p99 {load.latency_us.p99 / 1000:8.3f} ms  bad {load.bad} {load.first_bad[:80]}",
                flush=True,
            )
        _wait_quiet(peer.children())

    def _note(self, text: str) -> None:
        self._results.notes.append(text)
        print(f"  {text}", flush=True)

    def _load(
        self,
        setup: Setup,
        endpoint: Endpoint,
        clients: int,
        *,
        mode: str = "stream",
        requests_max: int = 0,
    ) -> Load:
        return run_load(
            endpoint,
            clients=clients,
            stream=mode != "whole",
            paced=mode == "paced",
            warm_up_s=0 if requests_max else self._plan.warm_up_s,
            measure_s=30 if requests_max else self._plan.measure_s,
            cpus=setup.load_cpus,
            folder=self._folder,
            requests_max=requests_max,
        )

    def _start(self, peer: Peer, setup: Setup, upstream_port: int) -> Endpoint | None:
        begun = time.monotonic()
        try:
            endpoint = peer.start(self._place(setup, upstream_port, peer.name))
            print(f"  {peer.name}: up in {time.monotonic() - begun:.1f} s", flush=True)
            for mode in ("stream", "whole", "paced"):  # caches, lazy imports, compilers
                self._load(setup, endpoint, 8, mode=mode)
        except (Unavailable, StartFailed, LoadFailed) as error:
            peer.stop()
            self._note(f"{peer.name}, {setup.name}: not measured: {' '.join(str(error).split())}")
            return None
        return endpoint

    def _start_upstream(self, setup: Setup) -> tuple[Child, int]:
        folder = self._folder / "upstream"
        folder.mkdir(exist_ok=True)
        stream, whole = write_recording(folder)
        port = free_port()
        argv: list[str | Path] = [compiled(HERE / "native" / "upstream.c"), str(port)]
        argv += [stream, whole, str(PACE_US)]
        child = Child(argv, log=folder / "log", cpus=setup.load_cpus)
        wait_ready(child, lambda: listening(port), 5)
        return child, port

    def _place(self, setup: Setup, upstream_port: int, name: str) -> Place:
        folder = self._folder / f"{setup.name}-{name}"
        folder.mkdir(exist_ok=True)
        return Place(upstream_port, setup.peer_cpus, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, install, measure, report."""
    parser = argparse.ArgumentParser(description="Measure QwenStack against its peers.")
    parser.add_argument("--quick", action="store_true", help="one round, few points")
    parser.add_argument("--only", nargs="+", metavar="PEER", help="measure these (and direct)")
    kill = argparse.BooleanOptionalAction
    parser.add_argument("--kill", action=kill, help="the kill -9 (default: unless --quick)")
    parser.add_argument("--docs", type=Path, help="write the table into this Markdown file")
    parser.add_argument("--results", type=Path, help="JSON of all samples; default: beside --docs")
    parser.add_argument("--report", action="store_true", help="only rewrite the report")
    options = parser.parse_args(arguments)
    if options.results is None:
        options.results = (options.docs or CACHE / "gateway").with_suffix(".gateway.json")
    if options.report:
        report.publish(load_results(options.results), options.docs)
        return 0
    end_on_signals()
    command = "python -m benchmarks.gateway.run" + (" --quick" if options.quick else "")
    results = Results(command, _machine(), time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    folder = Path(tempfile.mkdtemp(prefix="qwenstack-bench-"))
    folder.chmod(0o755)  # a database that refuses to run as root must reach its own folder
    try:
        _run(options, results, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        options.results.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    report.publish(results, options.docs)
    return 0


def _run(options: argparse.Namespace, results: Results, folder: Path) -> None:
    plan = QUICK if options.quick else FULL
    peers = _installed(results, options.only)
    bench = Bench(plan, folder, results, time.monotonic() + (150 if options.quick else 660))
    for setup in _setups(plan):
        results.setups.append(setup)
        print(f"{setup.name}: gateway on CPU {setup.peer_cpus}, load on {setup.load_cpus}")
        bench.measure(setup, peers)
    if options.kill if options.kill is not None else not options.quick:
        print("kill -9")
        for peer in peers:
            if peer.bills and not results.peers[peer.name].missing:
                bench.kill(results.setups[0], peer)


def _installed(results: Results, only: Sequence[str] | None) -> list[Peer]:
    peers: list[Peer] = []
    for kind in PEERS:
        peer = kind()
        if only and peer.name not in (*only, "direct"):
            continue
        results.peers[peer.name] = PeerState(peer.setup)
        try:
            peer.install()
            peers.append(peer)
        except Unavailable as error:
            results.peers[peer.name] = PeerState(peer.setup, str(error))
            print(f"{peer.name}: not installed: {error}")
    return peers


def _setups(plan: Plan) -> list[Setup]:
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:2]
    setups = []
    if len(cpus) == 2:
        setups.append(Setup("split", cpus[:1], cpus[1:]))
    if plan.shared_clients or not setups:
        setups.append(Setup("shared", cpus, cpus))
    return setups


def _wait_quiet(children: Sequence[Child]) -> None:
    """Wait, boundedly, until a peer has finished what it does after its answers."""
    deadline = time.monotonic() + QUIET_S_MAX
    while children and time.monotonic() < deadline:
        before = sum(child.cpu_seconds() for child in children)
        time.sleep(0.3)
        if sum(child.cpu_seconds() for child in children) - before < 0.03:
            return


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()}, Python {sys.version.split()[0]}, "
        f"a durable write of 4 KiB takes {_durable_write_ms():.2f} ms (p50)"
    )


def _durable_write_ms() -> float:
    """What every durable record costs at least on this machine's disk, when it is alone."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(100):
            os.write(file.fileno(), bytes(4096))
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return median(times) * 1000


if __name__ == "__main__":
    sys.exit(main())
