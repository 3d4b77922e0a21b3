"""aiohttp's connection pool with two things about its connections put right."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import _EXC_SENTINEL as _UNCAUSED
from aiohttp.http_exceptions import HttpProcessingError


class _Connection(ResponseHandler):
    """A connection that resumes only what was paused, and that lets nobody wait for a broken body.

    aiohttp 3.14 resumes parser and transport after every chunk that is taken from the buffer,
    paused or not. An answer of 40 events in one read costs 40 such calls, a sixth of the processor
    time of the whole request.
    """

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume if `pause_reading` came before."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _UNCAUSED) -> None:
        """Tell whoever reads the body, too.

        On a body that is broken HTTP, aiohttp 3.14 closes the connection without waking its reader.
        """
        super().set_exception(exc, exc_cause)
        body = self._payload
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError(str(exc)))


def _make_connection(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Connection(loop)


class PooledConnector(aiohttp.TCPConnector):
    """A TCP connector that makes such connections.

    `_factory` is not part of aiohttp's documented interface. Should it go, a request costs more,
    and a broken body is noticed at the idle time-out only; a test tells.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        loop = asyncio.get_running_loop()
        self._factory = functools.partial(_make_connection, loop=loop)
