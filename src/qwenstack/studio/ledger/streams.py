"""Streams under way, and their saved state: what a killed process had delivered is still billed.

A few times a second the state of every running stream is written to the ledger's database. When a
process comes up and finds saved streams that nobody runs any more, it settles them as interrupted.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from qwenstack.core.instants import now_us
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.background import Background
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.writes import Checkpoint, Settle

CHECKPOINT_INTERVAL_S = 0.25


class Stream(Protocol):
    """A running stream, as far as its saved state needs it."""

    @property
    def usage(self) -> TokenUsage | None:
        """The engine's count of what was delivered so far."""
        ...

    def settlement(self, at_us: int) -> Settle:
        """The bill, were it to end now."""
        ...


class OpenStreams:
    """The streams that this process runs."""

    def __init__(self, journal: Journal, worker_id: str) -> None:
        self._journal = journal
        self._worker_id = worker_id
        self._streams: dict[str, Stream] = {}
        self._saved: dict[str, TokenUsage] = {}
        # A few times a second what has changed is saved.
        self.background = Background("the saving of streams", CHECKPOINT_INTERVAL_S, self._save)

    def __len__(self) -> int:
        return len(self._streams)

    def opened(self, request_id: str, stream: Stream) -> None:
        """Save this stream's state from now on."""
        self._streams[request_id] = stream

    def closed(self, request_id: str) -> bool:
        """Stop saving it; whether anything of it was saved."""
        self._streams.pop(request_id, None)
        return self._saved.pop(request_id, None) is not None

    def checkpoint(self) -> Checkpoint | None:
        """What has changed since the last one, or None."""
        at_us = now_us()
        changed: list[tuple[str, bytes]] = []
        for request_id, stream in self._streams.items():
            usage = stream.usage
            if usage is not None and self._saved.get(request_id) != usage:
                self._saved[request_id] = usage
                changed.append((request_id, msgspec.json.encode(stream.settlement(at_us))))
        return Checkpoint(self._worker_id, tuple(changed)) if changed else None

    async def _save(self) -> None:
        if self._journal.healthy and (checkpoint := self.checkpoint()) is not None:
            await self._journal.submit(checkpoint)
