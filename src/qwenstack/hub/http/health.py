"""Whether the hub is alive, and whether it can serve."""

from __future__ import annotations

import asyncio

from aiohttp import web
from sqlalchemy import text

from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.hub import Hub
from qwenstack.storage.database import reading


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    async def alive(_: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        # A database that is away is a 503, as for every other request.
        await asyncio.to_thread(_ask, hub)
        return json_response({"status": "ok"})

    return [web.get("/healthz", alive), web.get("/readyz", ready)]


def _ask(hub: Hub) -> None:
    with reading(hub.database) as connection:
        connection.execute(text("SELECT 1"))
