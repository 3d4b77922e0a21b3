"""The family tree as a page, as SVG and as JSON."""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import RepoNotFound, Unauthorized
from qwenstack.hub.family import Branch, Family, forest, read_family, tree_with, walk
from qwenstack.hub.http.access import identify
from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.http.pages.family_svg import draw
from qwenstack.hub.http.pages.shell import PAGE_HEADERS, Shell
from qwenstack.storage.database import reading

_LISTED_MAX = 1000
# The style of a file that is opened by itself; it still loads and runs nothing.
_FILE_HEADERS = PAGE_HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"
}


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""

    async def read(viewer: Identity, model: str | None) -> list[Branch]:
        if viewer.account is None and not viewer.guest_sees_public:
            raise Unauthorized("This hub shows nothing without a token; sign in first.")

        def act() -> list[Branch]:
            with reading(shell.hub.database) as connection:
                trees = forest(read_family(connection, viewer))
            if model is None:
                return trees
            one = tree_with(trees, model)
            if one is None:
                raise RepoNotFound("There is no such model here, or none that you may see.")
            return [one]

        return await asyncio.to_thread(act)

    async def page(request: web.Request) -> web.Response:
        viewer = await shell.viewer(request)
        model = request.query.get("model") or None
        trees = await read(viewer, model)
        rows = [branch for tree in trees for branch in walk(tree)]
        return shell.show(
            request,
            viewer,
            "family.html",
            title="Family tree",
            model=model,
            drawing=draw(trees, marked=model),
            rows=rows[:_LISTED_MAX],
            total=len(rows),
        )

    async def svg(request: web.Request) -> web.Response:
        model = request.query.get("model") or None
        trees = await read(await identify(shell.hub, request), model)
        drawing = str(draw(trees, marked=model, alone=True))
        return web.Response(text=drawing, content_type="image/svg+xml", headers=_FILE_HEADERS)

    async def json(request: web.Request) -> web.Response:
        trees = await read(await identify(shell.hub, request), request.query.get("model") or None)
        models = sum(1 for tree in trees for _ in walk(tree))
        return json_response(Family(models, tuple(trees)))

    return [
        web.get("/tree", shell.page(page)),
        web.get("/tree.svg", svg),
        web.get("/tree.json", json),
    ]
