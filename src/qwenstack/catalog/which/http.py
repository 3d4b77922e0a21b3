"""`which` over HTTP: `GET /catalog/v1/which?ref=…`, as a pure function and as an aiohttp app.

Over HTTP a reference is only text: no path of the server is opened. An answer changes only with the
catalogue, whose digest is the entity tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from qwenstack.catalog.which.decide import which
from qwenstack.catalog.which.index import Index, index

if TYPE_CHECKING:
    from aiohttp import web

PATH: Final = "/catalog/v1/which"
REFERENCE_CHARACTERS_MAX: Final = 8_192
_REFERENCES_MAX: Final = 100


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP response: JSON in `body`."""

    status: int
    body: bytes
    etag: str = ""


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem in the form of RFC 9457."""

    title: str
    detail: str
    status: int


def respond(
    references: list[str], *, if_none_match: str = "", catalogue: Index | None = None
) -> Response:
    """The response for the values of `ref`: one answer, or a list of them where there are more."""
    found = catalogue or index()
    if not references or not all(references):
        return _problem(400, "no reference", f"give ?ref=, as in {PATH}?ref=Qwen/Qwen3-8B")
    if len(references) > _REFERENCES_MAX:
        return _problem(
            400, "too many references", f"{len(references)}; at most {_REFERENCES_MAX} a request"
        )
    long = next((each for each in references if len(each) > REFERENCE_CHARACTERS_MAX), None)
    if long is not None:
        return _problem(
            414,
            "reference too long",
            f"ref has {len(long):,} characters; at most {REFERENCE_CHARACTERS_MAX:,}",
        )
    etag = f'"{found.catalogue.digest[:32]}"'
    if if_none_match == etag:
        return Response(status=304, body=b"", etag=etag)
    answers = [which(each, catalogue=found, files=False) for each in references]
    return Response(
        status=200,
        body=msgspec.json.encode(answers[0] if len(answers) == 1 else answers),
        etag=etag,
    )


def _problem(status: int, title: str, detail: str) -> Response:
    body = msgspec.json.encode(_Problem(title=title, detail=detail, status=status))
    return Response(status=status, body=body)


def app() -> web.Application:
    """An aiohttp application with the one route, to serve or to mount."""
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        found = respond(
            request.query.getall("ref", []),
            if_none_match=request.headers.get("If-None-Match", ""),
        )
        headers = {"Cache-Control": "public, max-age=300"}
        if found.etag:
            headers["ETag"] = found.etag
        kind = "application/json" if found.status < 400 else "application/problem+json"
        return web.Response(
            status=found.status, body=found.body, content_type=kind, headers=headers
        )

    application = web.Application(client_max_size=64 * 1024)
    application.router.add_get(PATH, handle)
    return application
