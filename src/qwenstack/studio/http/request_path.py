"""What every route that runs a model does alike: who calls, how it ends, who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from qwenstack.core.generation import EmbeddingRequest, GenerationRequest
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.trace_context import begin_span, read_trace_context
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.admit import Door
from qwenstack.studio.http.exchange import ClientGone, Exchange
from qwenstack.studio.observers import Observer
from qwenstack.studio.serving import Serving
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.tenancy import Caller
from qwenstack.studio.tenants import Tenants
from qwenstack.studio.ticket import Ticket

_R = TypeVar("_R", GenerationRequest, EmbeddingRequest)
_DEFECT = Refusal(RefusalKind.INTERNAL, "An internal error occurred.")


class Refusing(Protocol):
    """A surface, as far as failing needs it."""

    name: str

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in the vendor's shape."""
        ...


class RequestPath(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the studio that a request passes.

    `sample_ratio` is the share of requests that are traced, None where no spans are sent anywhere.
    `keep_alive_s` is how long a stream may stand still before a sign of life is sent; 0 sends none.
    """

    tenants: Tenants
    door: Door
    serving: Serving
    observer: Observer
    body_bytes_max: int
    sample_ratio: float | None
    keep_alive_s: float

    async def received(self, exchange: Exchange) -> tuple[Caller, bytes]:
        """Who asks, and the request's body; raises Refusal."""
        caller = self.tenants.caller(exchange.secret, "inference", now_us())
        return caller, await exchange.body(self.body_bytes_max)

    def traced(self, exchange: Exchange, request: _R) -> _R:
        """The request with its span: ours, else the caller's, so that an engine continues it."""
        header = exchange.headers.get(b"traceparent")
        if header is None and self.sample_ratio is None:
            return request
        state = exchange.headers.get(b"tracestate", b"")
        trace = None if header is None else read_trace_context(header, state)
        if self.sample_ratio is not None:
            trace = begin_span(trace, self.sample_ratio)
        return request if trace is None else msgspec.structs.replace(request, trace=trace)

    async def answer(
        self, exchange: Exchange, surface: Refusing, serve: Callable[[Exchange], Awaitable[None]]
    ) -> None:
        """Serve; every failure becomes an answer in the surface's shape."""
        try:
            await serve(exchange)
        except Refusal as refusal:
            self.observer.refused(surface.name, refusal, exchange.request_id)
            await exchange.reply(surface.refuse(refusal, exchange.request_id))
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not exchange.client_gone:
                raise
        except Exception:
            # A defect of ours: whoever called us logs and answers it, and the watchers count it.
            self.observer.refused(surface.name, _DEFECT, exchange.request_id)
            raise
        finally:
            exchange.unwatch()

    async def send_whole(
        self, exchange: Exchange, ticket: Ticket, settled: Awaitable[bytes]
    ) -> None:
        """Send an answer that is billed; take the bill back where nobody is left to get it."""
        try:
            body = await settled
            if exchange.client_gone:
                raise ClientGone
        except (asyncio.CancelledError, ClientGone):
            if exchange.client_gone and ticket.closed:
                self.serving.take_back(ticket, "the client left before the answer was sent")
            raise
        await exchange.reply(Reply(200, body, rate_limit_headers(ticket.admission.snapshot)))
