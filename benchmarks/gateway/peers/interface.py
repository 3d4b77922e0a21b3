"""What the driver asks of a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from benchmarks.gateway.load import Endpoint
from benchmarks.gateway.processes import Child


class Place(msgspec.Struct, frozen=True):
    """Where and on what a peer runs: its `folder` is fresh, `cpus` are the ones it may use."""

    upstream_port: int
    cpus: tuple[int, ...]
    folder: Path

    @property
    def upstream(self) -> str:
        """Base URL of the upstream, without a path."""
        return f"http://127.0.0.1:{self.upstream_port}"


class Spend(msgspec.Struct, frozen=True):
    """What a billing peer has durably recorded."""

    requests: int
    completion_tokens: int


class Peer(Protocol):
    """A gateway under test. `start` after `kill` comes up on the same data."""

    name: str
    bills: bool
    setup: str

    def install(self) -> None:
        """Bring it onto this machine; raises `Unavailable`."""

    def start(self, place: Place) -> Endpoint:
        """Start and wait until it serves; raises `Unavailable` or `StartFailed`."""

    def children(self) -> list[Child]:
        """What runs, database included."""

    def kill(self) -> None:
        """SIGKILL the gateway's processes, not its database's."""

    def stop(self) -> None:
        """End everything."""

    def spend(self) -> Spend | None:
        """Read what is on record; None where the peer does not bill."""
