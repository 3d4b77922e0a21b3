"""Following a redirect to another host without taking the caller's secret there.

urllib repeats every header of the first request, the Authorization among them (CPython's
`HTTPRedirectHandler.redirect_request`).
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from http.client import HTTPMessage
from typing import IO


class SecretStays(urllib.request.HTTPRedirectHandler):
    """Drops the Authorization where a redirect leads to another scheme, host or port."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request that follows; None where this is no redirect to follow."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and _origin(following.full_url) != _origin(req.full_url):
            following.remove_header("Authorization")
        return following


def opener() -> urllib.request.OpenerDirector:
    """urllib's opener with `SecretStays`."""
    return urllib.request.build_opener(SecretStays)


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.casefold()
