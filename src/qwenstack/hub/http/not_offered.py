"""What the client library can ask of some hub and this one does not do: said in so many words."""

from __future__ import annotations

from aiohttp import web

from qwenstack.hub.errors import NotOffered
from qwenstack.hub.http.access import API_REPO
from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.hub import Hub

# The beginning of the addresses, and what is behind them.
_AREAS = {
    "/api/collections": "collections",
    "/api/settings/webhooks": "webhooks",
    "/api/papers": "papers",
    "/api/daily_papers": "papers",
    "/api/jobs": "jobs",
    "/api/scheduled-jobs": "jobs",
    "/api/buckets": "buckets",
    "/buckets": "buckets",
}
_ATTACHMENTS = "/uploads"
# Where `git clone` and `git push` begin.
_GIT = "/{repo:(?:datasets/)?[^/]+/[^/]+}/info/refs"
_NO_GIT = (
    "This hub does not speak Git. Use the `hf` command with HF_ENDPOINT set to its address:\n"
    "  hf download NAMESPACE/NAME --local-dir FOLDER\n"
    "  hf upload NAMESPACE/NAME FOLDER\n"
)


def routes(_hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    async def no_spaces(_request: web.Request) -> web.Response:
        return json_response([])

    async def no_git(_request: web.Request) -> web.Response:
        # Git shows what comes as plain text, and nothing else.
        return web.Response(status=501, text=_NO_GIT)

    refused = [_refusing(start, what) for start, what in _AREAS.items()]
    leaderboards = _refusing(API_REPO + "/leaderboard", "leaderboards")
    # Sent, never read: an account may have been called so.
    attachments = _refusing(_ATTACHMENTS, "attachments of discussions", method="POST")
    listed = [web.get("/api/spaces", no_spaces), web.get(_GIT, no_git)]
    return [*refused, leaderboards, attachments, *listed]


def _refusing(start: str, what: str, *, method: str = "*") -> web.RouteDef:
    async def refuse(_request: web.Request) -> web.Response:
        raise NotOffered(
            f"This hub keeps models and datasets; it has no {what}. docs/hub-wire.md lists what it "
            "offers."
        )

    return web.route(method, f"{start}{{rest:(?:/.*)?}}", refuse)
