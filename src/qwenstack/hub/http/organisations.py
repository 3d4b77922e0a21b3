"""Users and organisations: overviews, members, and who changes those."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy import Connection, func, select

from qwenstack.hub.accounts import directory
from qwenstack.hub.accounts.authority import refuse
from qwenstack.hub.accounts.directory import Account, AccountKind
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may_manage
from qwenstack.hub.errors import NotFound
from qwenstack.hub.http.access import identify
from qwenstack.hub.http.bodies import json_response, read_json
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.people_wire import avatar, organisation, person
from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.repos import in_namespace
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import discussions, likes, memberships, repos


class NewRole(msgspec.Struct):
    """A member's role to be."""

    role: str


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Organisations(hub)
    one = "/api/organizations/{organisation:[^/]+}"
    return [
        web.get("/api/users/{user:[^/]+}/overview", handlers.user),
        web.get(one + "/overview", handlers.overview),
        web.get(one + "/members", handlers.members),
        web.put(one + "/members/{user:[^/]+}", handlers.set_member),
        web.delete(one + "/members/{user:[^/]+}", handlers.remove_member),
        # Nobody follows anybody on this hub: the lists are there, and empty.
        web.get(one + "/followers", handlers.nobody),
        web.get("/api/users/{user:[^/]+}/{list:followers|following}", handlers.nobody),
    ]


class _Organisations:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def user(self, request: web.Request) -> web.Response:
        identity = await self._guest(request)
        name = request.match_info["user"]

        def read() -> dict[str, Any]:
            with reading(self._hub.database) as connection:
                account = directory.find_account(connection, name, "user")
                # What somebody does in hidden repos is not for others to count.
                own = account.key == identity.account or identity.operator
                seen = () if own else (repos.c.private.is_(False),)
                return _overview(connection, account, identity) | {
                    "user": account.name,
                    "type": "user",
                    "isPro": False,
                    "orgs": [
                        organisation(each)
                        for each in directory.organisations_of(connection, account.key)
                    ],
                    "numDiscussions": _count(
                        connection,
                        discussions.join(repos, repos.c.id == discussions.c.repo_id),
                        discussions.c.author == account.key,
                        *seen,
                    ),
                    "numLikes": _count(
                        connection,
                        likes.join(repos, repos.c.id == likes.c.repo_id),
                        likes.c.account == account.key,
                        *seen,
                    ),
                }

        return json_response(await asyncio.to_thread(read))

    async def overview(self, request: web.Request) -> web.Response:
        identity = await self._guest(request)
        name = request.match_info["organisation"]

        def read() -> dict[str, Any]:
            with reading(self._hub.database) as connection:
                account = directory.find_account(connection, name, "organisation")
                return _overview(connection, account, identity) | {
                    "name": account.name,
                    "type": "org",
                    "isVerified": False,
                    "numUsers": _count(
                        connection, memberships, memberships.c.organisation == account.key
                    ),
                }

        return json_response(await asyncio.to_thread(read))

    async def members(self, request: web.Request) -> web.Response:
        await self._guest(request)
        name = request.match_info["organisation"]

        def read() -> list[object]:
            with reading(self._hub.database) as connection:
                return [
                    msgspec.to_builtins(person(each.account)) | {"role": each.role}
                    for each in directory.members(connection, name)
                ]

        return json_response(await asyncio.to_thread(read))

    async def set_member(self, request: web.Request) -> web.Response:
        name, actor = await self._managed(request)
        user, wanted = request.match_info["user"], await read_json(request, NewRole)

        def write() -> dict[str, str]:
            with self._hub.database.begin() as connection:
                member = directory.set_role(connection, name, user, wanted.role, actor=actor)
            return {"user": member.account.name, "role": member.role}

        return json_response(await asyncio.to_thread(write))

    async def remove_member(self, request: web.Request) -> web.Response:
        name, actor = await self._managed(request)
        user = request.match_info["user"]

        def write() -> None:
            with self._hub.database.begin() as connection:
                directory.remove_member(connection, name, user, actor=actor)

        await asyncio.to_thread(write)
        return json_response({"ok": True})

    async def nobody(self, request: web.Request) -> web.Response:
        await self._guest(request)
        name = request.match_info.get("organisation")
        kind: AccountKind = "user" if name is None else "organisation"

        def read() -> None:
            with reading(self._hub.database) as connection:
                directory.find_account(connection, name or request.match_info["user"], kind)

        await asyncio.to_thread(read)
        return json_response([])

    async def _managed(self, request: web.Request) -> tuple[str, str]:
        """The organisation, and who may change it and does."""
        identity: Identity = await identify(self._hub, request)
        name = request.match_info["organisation"]
        refuse(may_manage(identity, name))
        return name, identity.name

    async def _guest(self, request: web.Request) -> Identity:
        """The caller, who on a closed hub needs a token to learn who is here."""
        identity: Identity = await identify(self._hub, request)
        if identity.account is None and not identity.guest_sees_public:
            raise NotFound("There is no such account here, or none that you may see.")
        return identity


def _overview(connection: Connection, account: Account, identity: Identity) -> dict[str, Any]:
    # A member's count includes what strangers cannot see.
    inside = account.key == identity.account or account.key in identity.organisations
    where = [in_namespace(account.key)]
    if not inside and not identity.operator:
        where.append(repos.c.private.is_(False))
    return {
        "fullname": account.full_name,
        "avatarUrl": avatar(account.key),
        "createdAt": wire_instant(account.created_us),
        "isFollowing": False,
        "numModels": _count(connection, repos, repos.c.kind == "model", *where),
        "numDatasets": _count(connection, repos, repos.c.kind == "dataset", *where),
        "numSpaces": 0,
        "numPapers": 0,
        "numFollowers": 0,
        "numFollowing": 0,
    }


def _count(connection: Connection, table: Any, *where: Any) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(*where)) or 0
