"""Signing in with a token, the sheet that all pages share, and accounts' pictures."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.authority import session_cookie
from qwenstack.hub.errors import Unauthorized
from qwenstack.hub.http.access import SESSION_COOKIE, base_url
from qwenstack.hub.http.pages.charts import letter
from qwenstack.hub.http.pages.shell import PAGE_HEADERS, Shell, go_to, local_path

_SESSION_S = 7 * 24 * 3600
_SHEET = (Path(__file__).parent / "hub.css").read_bytes()


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""

    async def form(request: web.Request) -> web.Response:
        viewer = await shell.viewer(request)
        return shell.show(
            request,
            viewer,
            "login.html",
            title="Sign in",
            next=local_path(request.query.get("next", "/")),
            problem=None,
        )

    async def login(request: web.Request) -> web.Response:
        viewer = await shell.actor(request)
        fields = await request.post()
        token, after = str(fields.get("token", "")).strip(), local_path(str(fields.get("next", "")))
        try:
            identity = await asyncio.to_thread(shell.hub.authority.identify, token)
        except Unauthorized:
            return shell.show(
                request,
                viewer,
                "login.html",
                status=401,
                title="Sign in",
                next=after,
                problem="This hub knows no such token, or it is over. An operator makes another: "
                "qwenstack hub tokens create NAME",
            )
        assert identity.token is not None
        ends_us = now_us() + _SESSION_S * 1_000_000
        answer = go_to(after)
        answer.set_cookie(
            SESSION_COOKIE,
            session_cookie(identity.token.id, ends_us, shell.hub.secret),
            max_age=_SESSION_S,
            httponly=True,
            secure=base_url(shell.hub, request).startswith("https://"),
            samesite="Lax",
        )
        return answer

    async def logout(request: web.Request) -> web.Response:
        await shell.actor(request)
        answer = go_to("/")
        answer.del_cookie(SESSION_COOKIE)
        return answer

    async def sheet(_request: web.Request) -> web.Response:
        headers = PAGE_HEADERS | {"Cache-Control": "public, max-age=300"}
        return web.Response(body=_SHEET, content_type="text/css", headers=headers)

    async def avatar(request: web.Request) -> web.Response:
        headers = PAGE_HEADERS | {"Cache-Control": "public, max-age=86400"}
        picture = letter(request.match_info["key"])
        return web.Response(text=picture, content_type="image/svg+xml", headers=headers)

    return [
        web.get("/login", shell.page(form)),
        web.post("/login", shell.page(login)),
        web.post("/logout", shell.page(logout)),
        web.get("/assets/hub.css", sheet),
        web.get("/avatars/{key:[a-z0-9][a-z0-9._-]{0,95}}.svg", avatar),
    ]
