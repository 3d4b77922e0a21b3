"""The hub's pages: rendered here, readable without a script, with nothing from elsewhere."""

from __future__ import annotations

from aiohttp import web

from qwenstack.hub.http.pages import (
    access_requests,
    commits,
    family_page,
    front,
    namespace,
    release,
    session,
    talk,
)
from qwenstack.hub.http.pages.shell import Shell
from qwenstack.hub.hub import Hub


def routes(hub: Hub) -> list[web.RouteDef]:
    """The pages' routes; the last of them match nearly every path."""
    shell = Shell(hub)
    return [
        *session.routes(shell),
        *family_page.routes(shell),
        *front.routes(shell),
        *talk.routes(shell),
        *access_requests.routes(shell),
        *commits.routes(shell),
        *release.routes(shell),
        *namespace.routes(shell),
    ]
