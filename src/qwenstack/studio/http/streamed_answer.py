"""Sending a streamed answer, with signs of life while the model reads a long prompt.

Proxies and clients give a connection up on which nothing comes. What is sent then is no part of
the answer: nothing is billed for it, and an engine that fails may still be replaced by another.
"""

from __future__ import annotations

import asyncio

from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.surfaces.interface import GenerationSurface


class StreamedAnswer:
    """The answer of one streamed call.

    `interval_s` is how long it may stand still before the surface's sign of life is sent; 0 sends
    none. The first one fixes the status: what fails after it is told in the stream.
    """

    def __init__(
        self,
        exchange: Exchange,
        surface: GenerationSurface,
        headers: tuple[tuple[bytes, bytes], ...],
        interval_s: float,
    ) -> None:
        self._exchange = exchange
        self._surface = surface
        self._headers = headers
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._sign: asyncio.Task[None] | None = None
        self._written_s = self._loop.time()
        if interval_s:
            self._timer = self._loop.call_later(interval_s, self._look)

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send whole events; the head goes before the first, also where `data` is empty."""
        if self._sign is not None and not self._sign.done():
            # Broken off it could have taken the head with it; overtaken, come in the midst of this.
            await asyncio.wait((self._sign,))
        if not more:
            self.close()
        await self._send(data, more=more)

    async def _send(self, data: bytes, *, more: bool = True) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, self._surface.stream_content_type, self._headers)
        if data or not more:
            self._written_s = self._loop.time()
            await self._exchange.write(data, more=more)

    def close(self) -> None:
        """Send no more signs of life."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sign is not None:
            self._sign.cancel()
            self._sign = None

    def _look(self) -> None:
        """See whether the answer has stood still; one timer for all of it."""
        still_s = self._loop.time() - self._written_s
        wait_s = self._interval_s - still_s
        if wait_s <= 0:
            wait_s = self._interval_s
            # A client that does not take the last sign gets no second one.
            if self._sign is None or self._sign.done():
                self._sign = self._loop.create_task(self._send(self._surface.sign_of_life))
        self._timer = self._loop.call_later(wait_s, self._look)
