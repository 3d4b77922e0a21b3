"""The hub's aiohttp application: it gathers the route modules.

Each module of this package exposes `routes(hub) -> list[web.RouteDef]`. Handlers are coroutines
over `web.Request`; blocking work goes through `asyncio.to_thread`; refusals are raised as
`qwenstack.hub.errors.HubError`. Order matters where two patterns match: the first one wins.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.typedefs import Middleware

from qwenstack.hub.http.errors import answer_errors, name_requests
from qwenstack.hub.http.pull_through import pull_through
from qwenstack.hub.http.tidying import tidying
from qwenstack.hub.hub import Hub

Routes = Callable[[Hub], list[web.RouteDef]]

# The database's pool holds as many connections.
_THREADS = 12

# A line a module, in the order in which they are asked. Pages come last: `/{namespace}/{name}`
# matches nearly everything.
_MODULES = (
    "health",
    "repos",
    "duplicates",
    "refs",
    "commits",
    "preupload",
    "tree",
    "lfs",
    "lfs_files",
    "resolve",
    "listing",
    "inventory",
    "lineage",
    "whoami",
    "organisations",
    "tokens",
    "discussions",
    "likes",
    "gated",
    "xet",
    "not_offered",
    "unnamed",
    "pages",
)


def make_app(hub: Hub) -> web.Application:
    """The application over this hub."""
    # The outermost first.
    middlewares: list[Middleware] = [name_requests, answer_errors, *pull_through(hub)]
    app = web.Application(middlewares=middlewares, client_max_size=8 * 1024 * 1024)
    for name in _MODULES:
        routes: Routes = importlib.import_module(f"qwenstack.hub.http.{name}").routes
        app.router.add_routes(routes(hub))
    app.cleanup_ctx.append(_threads)
    tidying(hub, app)
    return app


async def _threads(_app: web.Application) -> AsyncIterator[None]:
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="hub")
    asyncio.get_running_loop().set_default_executor(executor)
    yield
    executor.shutdown(wait=True, cancel_futures=True)
