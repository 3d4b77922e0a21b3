"""Who the caller is: what `hf auth login` and `whoami` ask."""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwenstack.hub.accounts.authority import BAD_TOKEN
from qwenstack.hub.accounts.directory import find_account, organisations_of
from qwenstack.hub.errors import Unauthorized
from qwenstack.hub.http import people_wire
from qwenstack.hub.http.access import identify
from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.hub import Hub
from qwenstack.storage.database import reading


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    async def whoami(request: web.Request) -> web.Response:
        identity = await identify(hub, request)
        key: str | None = identity.account
        if key is None:
            raise Unauthorized(BAD_TOKEN)

        def read() -> dict[str, object]:
            with reading(hub.database) as connection:
                account = find_account(connection, key)
                organisations = organisations_of(connection, account.key)
            return people_wire.whoami(account, organisations, identity)

        return json_response(await asyncio.to_thread(read))

    return [web.get("/api/whoami-v2", whoami), web.get("/api/whoami", whoami)]
