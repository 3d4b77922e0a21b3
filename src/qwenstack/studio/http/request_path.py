"""What every route that runs a model does alike: who calls, how it ends, who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.admit import Door
from qwenstack.studio.http.exchange import ClientGone, Exchange
from qwenstack.studio.observers import Observer
from qwenstack.studio.serving import Serving
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.tenancy import Caller
from qwenstack.studio.tenants import Tenants
from qwenstack.studio.ticket import Ticket

_DEFECT = Refusal(RefusalKind.INTERNAL, "An internal error occurred.")


class Refusing(Protocol):
    """A surface, as far as failing needs it."""

    name: str

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in the vendor's shape."""
        ...


class RequestPath(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the studio that a request passes."""

    tenants: Tenants
    door: Door
    serving: Serving
    observer: Observer
    body_bytes_max: int

    async def received(self, exchange: Exchange) -> tuple[Caller, bytes]:
        """Who asks, and the request's body; raises Refusal."""
        caller = self.tenants.caller(exchange.secret, "inference", now_us())
        return caller, await exchange.body(self.body_bytes_max)

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
