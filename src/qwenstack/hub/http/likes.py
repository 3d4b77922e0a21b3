"""Likes on the wire: give one, take it back, who gave one, and what somebody likes."""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwenstack.hub import likes
from qwenstack.hub.accounts.directory import Account, find_account
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.errors import Forbidden, NotFound, Unauthorized
from qwenstack.hub.http.access import API_REPO, identify, open_repo
from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.paging import cursor_of, limit_of, next_link
from qwenstack.hub.http.people_wire import person
from qwenstack.hub.hub import Hub
from qwenstack.hub.likes import Liked
from qwenstack.hub.registry.repos import read_repo
from qwenstack.storage.database import reading

_PAGE, _PAGE_MAX = 500, 1000


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Likes(hub)
    return [
        web.post(API_REPO + "/like", handlers.like),
        web.delete(API_REPO + "/like", handlers.unlike),
        web.get(API_REPO + "/likers", handlers.likers),
        web.get("/api/users/{user:[^/]+}/likes", handlers.liked),
    ]


class _Likes:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def like(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "see")
        account = liker(identity)

        def write() -> None:
            with self._hub.database.begin() as connection:
                likes.like(connection, repo.id, account)

        await asyncio.to_thread(write)
        return json_response({"ok": True})

    async def unlike(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "see")
        account = liker(identity)

        def write() -> None:
            with self._hub.database.begin() as connection:
                likes.unlike(connection, repo.id, account)

        await asyncio.to_thread(write)
        return json_response({"ok": True})

    async def likers(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "see")
        limit = limit_of(request, default=_PAGE, most=_PAGE_MAX)
        after = cursor_of(request, str) or ""

        def read() -> list[Account]:
            with reading(self._hub.database) as connection:
                return likes.likers(connection, repo.id, after=after, limit=limit)

        found = await asyncio.to_thread(read)
        headers = next_link(self._hub, request, found[-1].key) if len(found) == limit else None
        return json_response([person(each) for each in found], headers=headers)

    async def liked(self, request: web.Request) -> web.Response:
        identity: Identity = await identify(self._hub, request)
        if identity.account is None and not identity.guest_sees_public:
            raise NotFound("There is no such account here, or none that you may see.")
        limit = limit_of(request, default=_PAGE, most=_PAGE_MAX)
        after = cursor_of(request, str) or ""

        def read() -> tuple[list[Liked], list[Liked]]:
            with reading(self._hub.database) as connection:
                user = find_account(connection, request.match_info["user"], "user")
                found = likes.liked_by(connection, user.key, after=after, limit=limit)
                seen = [
                    each
                    for each in found
                    if may(identity, read_repo(connection, each.repo_id), "see").allowed
                ]
                return found, seen

        found, seen = await asyncio.to_thread(read)
        headers = next_link(self._hub, request, found[-1].repo_id) if len(found) == limit else None
        return json_response(
            [
                {
                    "createdAt": wire_instant(each.at_us),
                    "repo": {"name": each.name, "type": each.kind},
                }
                for each in seen
            ],
            headers=headers,
        )


def liker(identity: Identity) -> str:
    """The account that likes; a token that is not for writing everywhere gives none."""
    if identity.account is None or identity.token is None:
        raise Unauthorized("Liking a repo needs a token; make one and set HF_TOKEN.")
    if identity.token.role != "write":
        raise Forbidden(f"A {identity.token.role} token gives no likes; they need a write token.")
    return identity.account
