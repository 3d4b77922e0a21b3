"""The ASGI application: a table of routes and what to do with anything else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.http.exchange import ClientGone, Exchange, Receive, Scope, Send
from qwenstack.studio.surfaces.interface import Reply

_log = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]
Refuse = Callable[[Refusal, str], Reply]


class App:
    """Routes by method and exact path, then by method and path prefix.

    `refuse_at` says in which vendor's shape an unknown path under a prefix is answered; the longest
    prefix that fits wins.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Handler],
        prefixes: Mapping[tuple[str, str], Handler],
        refuse_at: Mapping[str, Refuse],
    ) -> None:
        self._routes = dict(routes)
        self._prefixes = sorted(prefixes.items(), key=lambda item: -len(item[0][1]))
        self._refuse_at = sorted(refuse_at.items(), key=lambda item: -len(item[0]))

    @property
    def paths(self) -> list[tuple[str, str]]:
        """Every exact (method, path) that is served."""
        return list(self._routes)

    @property
    def prefixes(self) -> list[tuple[str, str]]:
        """Every (method, beginning of a path) that is served."""
        return [served for served, _ in self._prefixes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        handler = self._find(exchange)
        try:
            if handler is None:
                raise self._no_route(exchange)
            await handler(exchange)
        except Refusal as refusal:
            reply = self._refuse(exchange)(refusal, exchange.request_id)
            if refusal.kind is RefusalKind.METHOD_NOT_ALLOWED:
                allowed = ", ".join(self._methods(exchange.path)).encode()
                reply = msgspec.structs.replace(
                    reply, headers=(*reply.headers, (b"allow", allowed))
                )
            await exchange.reply(reply)
        except ClientGone:
            return
        except Exception:
            _log.exception("an internal error", extra={"request_id": exchange.request_id})
            if exchange.started:
                raise
            defect = Refusal(RefusalKind.INTERNAL, "An internal error occurred; it was logged.")
            await exchange.reply(self._refuse(exchange)(defect, exchange.request_id))

    def _find(self, exchange: Exchange) -> Handler | None:
        # RFC 9110: HEAD is answered like GET; the server leaves the body out.
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if handler := self._routes.get((method, exchange.path)):
            return handler
        for (served, prefix), handler in self._prefixes:
            if method == served and exchange.path.startswith(prefix):
                return handler
        return None

    def _methods(self, path: str) -> list[str]:
        """What may be asked of `path`; empty where there is nothing."""
        methods = {method for method, served in self._routes if served == path}
        methods |= {method for (method, prefix), _ in self._prefixes if path.startswith(prefix)}
        return sorted(methods | {"HEAD"} if "GET" in methods else methods)

    def _no_route(self, exchange: Exchange) -> Refusal:
        methods = self._methods(exchange.path)
        if methods:
            return Refusal(
                RefusalKind.METHOD_NOT_ALLOWED,
                f"{exchange.path[:80]} takes {', '.join(methods)}, not {exchange.method[:20]}.",
            )
        return Refusal(
            RefusalKind.NOT_FOUND,
            f"Unknown request URL: {exchange.method[:20]} "
            f"{exchange.path[:80]}. See /openapi.json for what there is.",
        )

    def _refuse(self, exchange: Exchange) -> Refuse:
        return next(
            refuse for prefix, refuse in self._refuse_at if exchange.path.startswith(prefix)
        )
