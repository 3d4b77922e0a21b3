"""What all pages share: the template engine, the headers that fence a page in, and the viewer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import jinja2
from aiohttp import web

from qwenstack.core.instants import from_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import Forbidden, HubError
from qwenstack.hub.http.access import SESSION_COOKIE, base_url
from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.refs import short_name
from qwenstack.hub.registry.repos import Repo

_HERE = Path(__file__).parent
_DIFF_LINES_MAX = 3000

# Nothing from elsewhere, nothing inline that acts, no script at all, in nobody's frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
    "Vary": "Authorization, Cookie",
}

Handler = Callable[[web.Request], Awaitable[web.Response]]
# A namespace is no first segment of the hub's own paths.
NAMESPACE = r"{namespace:(?!(?:api|assets|avatars)/)[A-Za-z0-9_][A-Za-z0-9._-]*}"
NAME = r"{name:[A-Za-z0-9_][A-Za-z0-9._-]*}"
MODEL_PAGE = f"/{NAMESPACE}/{NAME}"
DATASET_PAGE = f"/{{kind:datasets}}/{NAMESPACE}/{NAME}"


def render(name: str, **context: object) -> str:
    """A template as HTML; whatever is put in is escaped unless it was sanitised here."""
    return _environment().get_template(name).render(**context)


class Shell:
    """Renders pages in the hub's frame, for whoever looks."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def page(self, handler: Handler) -> Handler:
        """The handler with refusals as pages instead of JSON."""

        @functools.wraps(handler)
        async def answer(request: web.Request) -> web.Response:
            try:
                return await handler(request)
            except HubError as error:
                viewer = await self.viewer(request)
                return self.show(
                    request,
                    viewer,
                    "error.html",
                    status=error.status,
                    title="Not here" if error.status == 404 else "Not possible",
                    message=error.message,
                    login=viewer.account is None,
                )

        return answer

    async def viewer(self, request: web.Request) -> Identity:
        """Who looks: the browser's session, or nobody in particular."""
        cookie = request.cookies.get(SESSION_COOKIE)
        return await asyncio.to_thread(self.hub.authority.identify, None, cookie)

    async def actor(self, request: web.Request) -> Identity:
        """Who sent a form. Raises Forbidden for a form of another site's page."""
        origin = request.headers.get("Origin")
        own = urlsplit(base_url(self.hub, request)).netloc
        same = request.headers.get("Sec-Fetch-Site") == "same-origin"
        if not same and (origin is None or urlsplit(origin).netloc not in (own, request.host)):
            raise Forbidden("This form was not sent from a page of this hub.")
        return await self.viewer(request)

    def show(
        self,
        request: web.Request,
        viewer: Identity,
        name: str,
        *,
        status: int = 200,
        **context: object,
    ) -> web.Response:
        """A page."""
        text = render(
            name,
            viewer=viewer,
            here=request.rel_url.raw_path_qs,
            endpoint=base_url(self.hub, request),
            now=datetime.now(UTC),
            **context,
        )
        return web.Response(
            text=text, status=status, content_type="text/html", headers=PAGE_HEADERS
        )


def go_to(path: str) -> web.Response:
    """Send the browser to another page of this hub after a form."""
    return web.Response(status=303, headers={"Location": local_path(path), **PAGE_HEADERS})


def local_path(path: str) -> str:
    """The path if it leads to this hub, else the front page."""
    if not path.startswith("/") or path.startswith("//") or "\\" in path or not path.isprintable():
        return "/"
    return quote(path, safe="/?&=%:@!$'()*+,;~-._#")


def repo_path(repo: Repo) -> str:
    """Where a repo's page is."""
    return f"/datasets/{repo.name}" if repo.kind == "dataset" else f"/{repo.name}"


def _bytes(size: int) -> str:
    """A size as people read it, in powers of 1000 as download tools show it."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _count(number: int) -> str:
    """A count in at most four characters: 812, 3.4K, 494M, 8.2B."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            value = number / unit
            return f"{value:.1f}{name}" if value < 10 else f"{value:.0f}{name}"
    return str(number)


def _counted(number: int, noun: str) -> str:
    """A count with its noun, which is plural but for one."""
    return f"{_count(number)} {noun}" if number == 1 else f"{_count(number)} {noun}s"


def _day(at_us: int) -> str:
    return f"{from_us(at_us):%Y-%m-%d}"


def _minute(at_us: int) -> str:
    return f"{from_us(at_us):%Y-%m-%d %H:%M} UTC"


def _query(**values: object) -> str:
    """A query string of what is set."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """The lines of a diff, each with the class that colours it."""
    found = []
    for line in diff.splitlines()[:_DIFF_LINES_MAX]:
        kind = "same"
        if line.startswith(("diff ", "index ", "--- ", "+++ ", "new file", "deleted file", "# ")):
            kind = "head"
        elif line.startswith("@@"):
            kind = "place"
        elif line.startswith("+"):
            kind = "added"
        elif line.startswith("-"):
            kind = "removed"
        found.append((kind, line))
    return found


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": _bytes, "count": _count, "day": _day, "minute": _minute}
    environment.filters |= {"counted": _counted, "short_name": short_name}
    environment.filters["diff_lines"] = diff_lines
    environment.globals |= {"repo_path": repo_path, "query": _query}
    return environment
