"""Counting a prompt's tokens over HTTP: within limits, without a bill."""

from __future__ import annotations

from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.request_path import RequestPath
from qwenstack.studio.surfaces.anthropic import AnthropicTokenCount
from qwenstack.studio.surfaces.interface import Reply


class TokenCountRoute:
    """Answers Anthropic's counting route."""

    def __init__(self, path: RequestPath) -> None:
        self._surface = AnthropicTokenCount()
        self._path = path

    async def __call__(self, exchange: Exchange) -> None:
        """Serve the request; every failure becomes an answer in the surface's shape."""
        await self._path.answer(exchange, self._surface, self._serve)

    async def _serve(self, exchange: Exchange) -> None:
        caller, body = await self._path.received(exchange)
        request = self._path.traced(exchange, self._surface.parse(body))
        tokens, snapshot = await self._path.door.count_prompt(caller, request)
        reply = Reply(200, self._surface.encode(tokens), rate_limit_headers(snapshot))
        await exchange.reply(reply)
