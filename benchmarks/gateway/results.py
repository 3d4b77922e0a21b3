"""What a run has found: the JSON file that the report is made from."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.gateway.load import Load


class Setup(msgspec.Struct, frozen=True):
    """Which CPUs the gateway (with its database) and the client (with the upstream) may use."""

    name: str
    peer_cpus: tuple[int, ...]
    load_cpus: tuple[int, ...]


class PeerState(msgspec.Struct, frozen=True):
    """How a peer was set up, and why it is `missing` where it is."""

    setup: str
    missing: str = ""


class Sample(msgspec.Struct, frozen=True):
    """One measurement; `mode` is stream, whole or paced."""

    setup: str
    peer: str
    mode: str
    clients: int
    round: int
    memory_bytes: int
    load: Load


class Kill(msgspec.Struct, frozen=True):
    """Answers that clients saw whole before the SIGKILL, and requests on record after a restart."""

    peer: str
    seen: int
    recorded: int
    bad: int


class Results(msgspec.Struct):
    """All of a run."""

    command: str
    machine: str
    date: str
    setups: list[Setup] = []
    peers: dict[str, PeerState] = {}
    samples: list[Sample] = []
    kills: list[Kill] = []
    notes: list[str] = []


def load_results(path: Path) -> Results:
    """Read the file of an earlier run."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
