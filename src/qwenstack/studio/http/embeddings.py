"""Serving embeddings over HTTP, for any surface that has them."""

from __future__ import annotations

import asyncio

from qwenstack.core.generation import EmbeddingResult
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.admit import Door
from qwenstack.studio.http.exchange import ClientGone, Exchange
from qwenstack.studio.observers import Observer
from qwenstack.studio.serving import Serving
from qwenstack.studio.surfaces.interface import EmbeddingSurface, Reply
from qwenstack.studio.tenants import Tenants


class EmbeddingRoute:
    """Answers one surface's embedding route."""

    def __init__(
        self,
        surface: EmbeddingSurface,
        *,
        tenants: Tenants,
        door: Door,
        serving: Serving,
        observer: Observer,
        body_bytes_max: int,
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
            call = surface.parse(await exchange.body(self._body_bytes_max), exchange.headers)
            ticket = await self._door.admit(
                caller,
                call.request,
                surface=surface.name,
                stream=False,
                request_id=exchange.request_id,
            )
            exchange.watch()

            def encode(result: EmbeddingResult) -> bytes:
                return surface.encode(
                    call, result, ticket.request_id, ticket.started_us // 1_000_000
                )

            try:
                body = await self._serving.embed(ticket, encode)
                if exchange.client_gone:
                    raise ClientGone
            except (asyncio.CancelledError, ClientGone):
                if exchange.client_gone and ticket.closed:
                    self._serving.take_back(ticket, "the client left before the answer was sent")
                raise
            await exchange.reply(Reply(200, body, rate_limit_headers(ticket.admission.snapshot)))
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
