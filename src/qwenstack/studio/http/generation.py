"""Serving a generation over HTTP, whole or streamed, for any surface."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from qwenstack.core.generation import Completion
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.admit import Door
from qwenstack.studio.http.exchange import ClientGone, Exchange
from qwenstack.studio.observers import Observer
from qwenstack.studio.serving import Serving
from qwenstack.studio.surfaces.interface import Call, GenerationSurface, Reply
from qwenstack.studio.tenants import Tenants
from qwenstack.studio.ticket import Ticket

BODY_BYTES_MAX = 16 * 1024 * 1024


class GenerationRoute:
    """Answers one surface's generation route."""

    def __init__(
        self,
        surface: GenerationSurface,
        *,
        tenants: Tenants,
        door: Door,
        serving: Serving,
        observer: Observer,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self._surface = surface
        self._tenants = tenants
        self._door = door
        self._serving = serving
        self._observer = observer
        self._body_bytes_max = body_bytes_max

    async def __call__(self, exchange: Exchange) -> None:
        """Serve the request; every failure becomes an answer in the surface's shape."""
        surface = self._surface
        try:
            caller = self._tenants.caller(exchange.secret, "inference", now_us())
            body = await exchange.body(self._body_bytes_max)
            call = surface.parse(body, exchange.headers)
            ticket = await self._door.admit(
                caller,
                call.request,
                surface=surface.name,
                stream=call.stream,
                request_id=exchange.request_id,
            )
            exchange.watch()
            if call.stream:
                await self._stream(exchange, call, ticket)
            else:
                await self._whole(exchange, call, ticket)
        except Refusal as refusal:
            self._observer.refused(surface.name, refusal)
            await exchange.reply(surface.refuse(refusal, exchange.request_id))
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not exchange.client_gone:
                raise
        finally:
            exchange.unwatch()

    async def _whole(self, exchange: Exchange, call: Call, ticket: Ticket) -> None:
        def encode(completion: Completion) -> bytes:
            return self._surface.encode(
                call, completion, ticket.request_id, ticket.started_us // 1_000_000
            )

        try:
            body = await self._serving.complete(ticket, encode)
            if exchange.client_gone:
                raise ClientGone
        except (asyncio.CancelledError, ClientGone):
            if exchange.client_gone and ticket.closed:
                self._serving.take_back(ticket, "the client left before the answer was sent")
            raise
        await exchange.reply(Reply(200, body, rate_limit_headers(ticket.admission.snapshot)))

    async def _stream(self, exchange: Exchange, call: Call, ticket: Ticket) -> None:
        encoder = self._surface.encoder(call, ticket.request_id, ticket.started_us // 1_000_000)
        try:
            async with aclosing(self._serving.stream(ticket)) as steps:
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
            self._observer.refused(self._surface.name, refusal)
            await exchange.write(encoder.fail(refusal), more=False)
