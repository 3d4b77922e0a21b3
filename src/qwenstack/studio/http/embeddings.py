"""Serving embeddings over HTTP, for any surface that has them."""

from __future__ import annotations

from qwenstack.core.generation import EmbeddingResult
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.request_path import RequestPath
from qwenstack.studio.surfaces.interface import EmbeddingSurface


class EmbeddingRoute:
    """Answers one surface's embedding route."""

    def __init__(self, surface: EmbeddingSurface, path: RequestPath) -> None:
        self._surface = surface
        self._path = path

    async def __call__(self, exchange: Exchange) -> None:
        """Serve the request; every failure becomes an answer in the surface's shape."""
        await self._path.answer(exchange, self._surface, self._serve)

    async def _serve(self, exchange: Exchange) -> None:
        surface, path = self._surface, self._path
        caller, body = await path.received(exchange)
        call = surface.parse(body, exchange.headers)
        ticket = await path.door.admit(
            caller,
            path.traced(exchange, call.request),
            surface=surface.name,
            stream=False,
            request_id=exchange.request_id,
        )
        exchange.watch()

        def encode(result: EmbeddingResult) -> bytes:
            return surface.encode(call, result, ticket.request_id, ticket.started_us // 1_000_000)

        await path.send_whole(exchange, ticket, path.serving.embed(ticket, encode))
