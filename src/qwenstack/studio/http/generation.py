"""Serving a generation over HTTP, whole or streamed, for any surface."""

from __future__ import annotations

from contextlib import aclosing

from qwenstack.core.generation import Completion
from qwenstack.core.refusals import Refusal
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.request_path import RequestPath
from qwenstack.studio.surfaces.interface import Call, GenerationSurface
from qwenstack.studio.ticket import Ticket


class GenerationRoute:
    """Answers one surface's generation route."""

    def __init__(self, surface: GenerationSurface, path: RequestPath) -> None:
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
            call.request,
            surface=surface.name,
            stream=call.stream,
            request_id=exchange.request_id,
        )
        exchange.watch()
        if call.stream:
            await self._stream(exchange, call, ticket)
            return

        def encode(completion: Completion) -> bytes:
            return surface.encode(
                call, completion, ticket.request_id, ticket.started_us // 1_000_000
            )

        await path.send_whole(exchange, ticket, path.serving.complete(ticket, encode))

    async def _stream(self, exchange: Exchange, call: Call, ticket: Ticket) -> None:
        encoder = self._surface.encoder(call, ticket.request_id, ticket.started_us // 1_000_000)
        try:
            async with aclosing(self._path.serving.stream(ticket)) as steps:
                async for step in steps:
                    data = encoder.finish(step) if step.final else encoder.step(step)
                    if not exchange.started:
                        await exchange.start(
                            200,
                            self._surface.stream_content_type,
                            rate_limit_headers(ticket.admission.snapshot),
                        )
                        data = encoder.start() + data
                    if data:
                        await exchange.write(data, more=not step.final)
        except Refusal as refusal:
            if not exchange.started:
                raise
            self._path.observer.refused(self._surface.name, refusal, exchange.request_id)
            await exchange.write(encoder.fail(refusal), more=False)
