"""Counting a prompt's tokens over HTTP: within limits, without a bill."""

from __future__ import annotations

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal
from qwenstack.studio.admission.limits import rate_limit_headers
from qwenstack.studio.admit import Door
from qwenstack.studio.http.exchange import ClientGone, Exchange
from qwenstack.studio.observers import Observer
from qwenstack.studio.surfaces.anthropic import AnthropicTokenCount
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.tenants import Tenants


class TokenCountRoute:
    """Answers Anthropic's counting route."""

    def __init__(
        self, *, tenants: Tenants, door: Door, observer: Observer, body_bytes_max: int
    ) -> None:
        self._surface = AnthropicTokenCount()
        self._tenants = tenants
        self._door = door
        self._observer = observer
        self._body_bytes_max = body_bytes_max

    async def __call__(self, exchange: Exchange) -> None:
        """Serve the request; every failure becomes an answer in the surface's shape."""
        surface = self._surface
        try:
            caller = self._tenants.caller(exchange.secret, "inference", now_us())
            request = surface.parse(await exchange.body(self._body_bytes_max))
            tokens, snapshot = await self._door.count_prompt(caller, request)
            await exchange.reply(Reply(200, surface.encode(tokens), rate_limit_headers(snapshot)))
        except Refusal as refusal:
            self._observer.refused(surface.name, refusal)
            await exchange.reply(surface.refuse(refusal, exchange.request_id))
        except ClientGone:
            pass
