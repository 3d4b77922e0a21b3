"""Pages of a list: an opaque cursor in the query, the next page's address in the `Link` header."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec
from aiohttp import web

from qwenstack.hub.errors import BadRequest
from qwenstack.hub.http.access import base_url
from qwenstack.hub.hub import Hub

_T = TypeVar("_T")
_CURSOR_CHARACTERS_MAX = 1000


def limit_of(request: web.Request, *, default: int, most: int) -> int:
    """The `limit` of the query, at most `most`; raises BadRequest for no positive number."""
    given = request.query.get("limit")
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or not int(given[:9]) > 0:
        raise BadRequest(f"limit {given[:40]!r} must be a positive number")
    return min(int(given[:9]), most)


def cursor_of(request: web.Request, kind: type[_T]) -> _T | None:
    """The place that the query's cursor points at; raises BadRequest for one of another making."""
    given = request.query.get("cursor")
    if not given:
        return None
    try:
        if len(given) > _CURSOR_CHARACTERS_MAX:
            raise ValueError("too long")
        document = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
        return msgspec.json.decode(document, type=kind)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise BadRequest("cursor is none of this list; begin again without it") from error


def cursor_text(place: object) -> str:
    """A place as the opaque text that stands in a query."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def next_link(hub: Hub, request: web.Request, place: object) -> dict[str, str]:
    """The `Link` header to what follows `place`, with the same question."""
    url = request.rel_url.update_query({"cursor": cursor_text(place)})
    return {"Link": f'<{base_url(hub, request)}{url.raw_path_qs}>; rel="next"'}
