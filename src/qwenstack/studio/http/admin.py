"""The admin API: serves the tables of typed routes.

Closed to every key without the scope `admin`. Each act is written in order with the ledger, with
its line in the audit log.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from sqlalchemy.exc import DBAPIError

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.storage.database import is_gone, reading
from qwenstack.studio.http.admin_alerts import ALERT_ROUTES
from qwenstack.studio.http.admin_limits import LIMIT_ROUTES
from qwenstack.studio.http.admin_records import RECORD_ROUTES
from qwenstack.studio.http.admin_route import AdminRoute, Handler, Request
from qwenstack.studio.http.admin_tenants import TENANT_ROUTES
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.query import read_query
from qwenstack.studio.installation import Installation
from qwenstack.studio.ledger.writes import Run
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.json_body import decode

PREFIX = "/admin/v1"
ROUTES: tuple[AdminRoute, ...] = (
    *TENANT_ROUTES,
    *LIMIT_ROUTES,
    *ALERT_ROUTES,
    *RECORD_ROUTES,
)
_BODY_BYTES_MAX = 256 * 1024


class AdminRoutes:
    """Serves the table."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._compiled = [(each, _pattern(each.path), _decoder(each)) for each in ROUTES]

    async def __call__(self, exchange: Exchange) -> None:
        """Authenticate, find the route, act, answer."""
        installation = self._installation
        key = installation.tenants.current.administrator(exchange.secret, now_us())
        route, parameters, decoder = self._find(exchange)
        body = None
        if decoder is not None:
            body = decode(decoder, await exchange.body(_BODY_BYTES_MAX))
        request = Request(
            actor=f"key:{key.prefix}",
            path=parameters,
            query=read_query(exchange.query),
            body=body,
            deployments=installation.deployments,
            sender=installation.alerts.sender,
        )
        if route.method == "GET":
            try:
                await installation.journal.written()
                answer = await asyncio.to_thread(self._read, route.handler, request)
            except DBAPIError as error:
                if not is_gone(error):
                    raise
                raise Refusal(
                    RefusalKind.STORAGE_UNAVAILABLE,
                    "The database cannot be reached at the moment; send it again.",
                    retry_after_s=2.0,
                ) from error
        else:
            answer = await installation.journal.submit(
                Run(lambda connection: route.handler(connection, request))
            )
            await installation.tenants.follow()
        await exchange.reply(Reply(200, msgspec.json.encode(answer)))

    def _read(self, handler: Handler, request: Request) -> object:
        database = self._installation.database
        with reading(database) as connection:
            return handler(connection, request)

    def _find(
        self, exchange: Exchange
    ) -> tuple[AdminRoute, dict[str, str], msgspec.json.Decoder[Any] | None]:
        path = exchange.path.removeprefix(PREFIX)
        methods = []
        for route, pattern, decoder in self._compiled:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == ("GET" if exchange.method == "HEAD" else exchange.method):
                return route, match.groupdict(), decoder
            methods.append(route.method)
        if methods:
            raise Refusal(RefusalKind.METHOD_NOT_ALLOWED, f"This route takes {', '.join(methods)}.")
        raise Refusal(RefusalKind.NOT_FOUND, "There is no such admin route; see /openapi.json.")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/\\x00-\\x1f]{1,200})", path))


def _decoder(route: AdminRoute) -> msgspec.json.Decoder[Any] | None:
    return None if route.body is None else msgspec.json.Decoder(route.body)
