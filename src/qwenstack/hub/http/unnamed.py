"""Addresses of repos that cannot be here: without a namespace, or of a kind that it does not keep.

They come last of the API: a repo may be called `tree` or `resolve`.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwenstack.hub.errors import RepoNotFound
from qwenstack.hub.http.access import bearer
from qwenstack.hub.hub import Hub

_REPO = "/api/{kind:models|datasets}/{name:[^/]+}"
_RESOURCE = (
    "{resource:revision|tree|refs|commits?|preupload|paths-info|branch|tag|settings|like|likers|"
    "discussions|super-squash|auth-check|xet-read-token|xet-write-token}{rest:(?:/.*)?}"
)


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    async def missing(request: web.Request) -> web.Response:
        await asyncio.to_thread(hub.authority.identify, bearer(request))
        raise RepoNotFound("There is no such repo; a repo's name is namespace/name.")

    return [
        web.get(_REPO, missing),
        web.route("*", f"{_REPO}/{_RESOURCE}", missing),
        web.get("/{name:[^/]+}/{resource:resolve|raw}/{path:.+}", missing),
        web.route("*", "/api/{kind:spaces|kernels}/{rest:.+}", missing),
    ]
