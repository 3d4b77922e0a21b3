"""A user's or an organisation's page: what they published, and who belongs to it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwenstack.hub import listing
from qwenstack.hub.accounts import directory
from qwenstack.hub.accounts.directory import Account, Member
from qwenstack.hub.errors import NotFound
from qwenstack.hub.http.pages.front import Tile, tiles_of
from qwenstack.hub.http.pages.shell import Shell
from qwenstack.hub.listing import Question
from qwenstack.hub.registry.repos import KINDS, Kind
from qwenstack.storage.database import reading

_SHOWN = 100


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""

    async def show(request: web.Request) -> web.Response:
        viewer = await shell.viewer(request)
        name = request.match_info["namespace"]
        if viewer.account is None and not viewer.guest_sees_public:
            raise NotFound("There is no such page here, or none that you may see.")

        def read() -> tuple[Account, list[Member], dict[Kind, list[Tile]]]:
            with reading(shell.hub.database) as connection:
                account = directory.find_account(connection, name)
                if account.kind == "organisation":
                    people = directory.members(connection, account.key)
                else:
                    people = directory.organisations_of(connection, account.key)
                tiles = {
                    kind: tiles_of(
                        connection,
                        viewer,
                        listing.list_repos(
                            connection,
                            viewer,
                            Question(kind=kind, author=account.key),
                            limit=_SHOWN,
                        ).repos,
                    )
                    for kind in KINDS
                }
                return account, people, tiles

        account, people, tiles = await asyncio.to_thread(read)
        return shell.show(
            request,
            viewer,
            "namespace.html",
            title=account.name,
            account=account,
            people=people,
            tiles=tiles,
        )

    return [web.get(r"/{namespace:[A-Za-z0-9][A-Za-z0-9._-]*}", shell.page(show))]
