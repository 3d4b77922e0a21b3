"""Errors on the wire: status, `X-Error-Code`, `X-Error-Message` and `{"error": …}`."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from sqlalchemy.exc import DataError, DBAPIError

from qwenstack.core.identifiers import new_id
from qwenstack.hub.errors import HubError
from qwenstack.storage.database import is_gone

_LOG = logging.getLogger(__name__)
_HEADER_CHARS_MAX = 900
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FULL_TEXT = "The hub's disk is full; nothing of this request was kept."

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    headers: dict[str, str] | None = None,
    fields: dict[str, object] | None = None,
) -> web.Response:
    """The answer that client libraries turn into their own exception."""
    answer = web.Response(
        status=status,
        body=msgspec.json.encode({"error": message, **(fields or {})}),
        content_type="application/json",
        headers=headers,
    )
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Error-Message"] = _header_text(message)
    if code is not None:
        answer.headers["X-Error-Code"] = code
    return answer


@web.middleware
async def name_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each answer an id, the client's own if it sent one; it is shown with errors.

    huggingface_hub names its requests in `X-Amzn-Trace-Id`.
    """
    response = await handler(request)
    if not response.prepared:
        sent = request.headers
        asked = sent.get("X-Request-Id") or sent.get("X-Amzn-Trace-Id") or ""
        response.headers["X-Request-Id"] = asked if _ID.fullmatch(asked) else new_id("req")
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer; a defect is logged with its trace and says 500."""
    try:
        return await handler(request)
    except HubError as error:
        return error_response(
            error.status,
            error.message,
            code=error.code,
            headers=error.headers,
            fields=error.fields,
        )
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = error.headers.get("Allow")
        return error_response(
            error.status, error.reason, headers={"Allow": allow} if allow else None
        )
    except TimeoutError:
        return error_response(408, "The request's body did not come in time.")
    except DataError as error:
        # PostgreSQL holds no NUL in a text; all that comes in is checked, but not for that.
        _LOG.info("a value that the database cannot hold: %s", error.orig)
        return error_response(
            400, "A value in the request holds what no name or text can, such as a NUL character."
        )
    except DBAPIError as error:
        if not is_gone(error):
            raise
        _LOG.warning("the database failed: %s", error.orig)
        if "is full" in str(error.orig):  # SQLite's and PostgreSQL's word for it
            return error_response(507, _DISK_FULL_TEXT)
        return error_response(503, "The hub's database is away; try again later.")
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        _LOG.warning("the disk is full: %s", error)
        return error_response(507, _DISK_FULL_TEXT)


def _header_text(message: str) -> str:
    """A message as a header can carry it: one line of Latin-1, bounded."""
    line = " ".join(message.split())[:_HEADER_CHARS_MAX]
    return "".join(each if 32 <= ord(each) < 127 else "?" for each in line)
