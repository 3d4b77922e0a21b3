"""Serving a generation over HTTP, whole or streamed, for any surface."""

from __future__ import annotations

from contextlib import aclosing

from qwenstack.core.generation import Completion
from qwenstack.core.refusals import Refusal
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.request_path import RequestPath
from qwenstack.studio.http.streamed_answer import StreamedAnswer
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
            path.traced(exchange, call.request),
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
        surface, path = self._surface, self._path
        encoder = surface.encoder(call, ticket.request_id, ticket.started_us // 1_000_000)
        headers = rate_limit_headers(ticket.admission.snapshot)
        answer = StreamedAnswer(exchange, surface, headers, path.keep_alive_s)
        began = False
        try:
            async with aclosing(path.serving.stream(ticket)) as steps:
                async for step in steps:
                    data = encoder.finish(step) if step.final else encoder.step(step)
                    if not began:
                        data = encoder.start() + data
                        began = True
                    await answer.write(data, more=not step.final)
        except Refusal as refusal:
            if not exchange.started:
                raise
            path.observer.refused(surface.name, refusal, exchange.request_id)
            failure = encoder.fail(refusal)
            await answer.write(failure if began else encoder.start() + failure, more=False)
        finally:
            answer.close()
