"""A client's side of one HTTP/1.1 connection: a request out, its answer's head and body in.

Parsed by httptools (llhttp), as the server's side is. A general client costs three times as much
processor time a request as everything else that is done to an answer; this one does what an engine
needs and has a bound on all that a server could send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httptools

HEAD_BYTES_MAX = 64 * 1024
# What may come without being part of a body: trailers, chunk sizes and their extensions.
_FRAMING_BYTES_MAX = 64 * 1024


class NotHttp(Exception):
    """The server sent what is no HTTP/1.1 answer to what was asked, or one without bounds."""


class ConnectionLost(Exception):
    """The connection ended before the answer did. `answered`: some of the answer had come."""

    def __init__(self, *, answered: bool) -> None:
        super().__init__("the connection ended before the answer did")
        self.answered = answered


class HttpConnection(asyncio.Protocol):
    """One connection; one request at a time: `send`, `head`, then `read` until it is empty.

    At most `buffer_bytes` and one read of the socket wait unread; then the server is slowed down.
    `on_lost` is called once, when the connection is gone.
    """

    def __init__(self, buffer_bytes: int, on_lost: Callable[[HttpConnection], None]) -> None:
        self.reused = False
        self.idle_since_s = 0.0
        self._buffer_bytes = buffer_bytes
        self._on_lost = on_lost
        self._on_end: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._paused = False
        self._lost = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.content_type = ""
        self.complete = False
        self._headed = False
        self._framed = False
        self._keep = False
        self._answered = False
        self._surplus = False
        self._outside_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._error: Exception | None = None

    # --- For the user ---------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether another request can be sent."""
        return not self._lost and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Whether the answer was read to its end and the server keeps the connection."""
        return (
            self.complete
            and self._keep
            and not self._surplus
            and self.alive
            and self._transport.get_write_buffer_size() == 0
        )

    def send(self, request: bytes) -> None:
        """Send a whole request."""
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        self._resume()
        if self.alive:  # uvloop raises where it is not; `head` says it in our own terms
            self._transport.write(request)

    async def head(self) -> None:
        """Wait for the answer's head; raises NotHttp, ConnectionLost, or what `fail` was given."""
        while not self._headed:
            if self._error is not None:
                raise self._error
            if self._lost:
                raise ConnectionLost(answered=False)
            await self._wait()

    async def read(self) -> bytes:
        """All of the body that has come, at least a byte; empty at its end. Raises as `head`."""
        while True:
            if self._body:
                read = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body = []
                self._body_bytes = 0
                self._resume()
                return read
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()

    def fail(self, error: Exception) -> None:
        """End the connection; whoever reads from it gets `error`."""
        if not self.complete:
            self._body = []
            self._error = self._error or error
        self._wake()
        self.abort()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call once the answer has ended or more of its body has come, or the connection is lost.

        A body that is paused because nobody reads it is read on.
        """
        self._on_end = call
        self._resume()

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection stands."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what came, within bounds."""
        parser = self._parser
        if parser is None or (self.complete and self._on_end is None):
            self._surplus = True
            self.abort()  # nothing was asked that this could be the answer to
            return
        self._answered = True
        before = self._body_bytes
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(str(error))
            return
        if self._body_bytes != before:
            self._outside_bytes = 0
        else:
            self._outside_bytes += len(data)
            most = _FRAMING_BYTES_MAX if self._headed else HEAD_BYTES_MAX
            if self._outside_bytes > most and not self.complete:
                self._break("what surrounds its body has no end")
                return
        # What comes after a whole answer must be seen before the next request is sent.
        if self._body_bytes > self._buffer_bytes and not self._paused and not self.complete:
            self._paused = True
            self._transport.pause_reading()
        if self._headed:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; a body without a length ends with it."""
        self._lost = True
        if not self.complete and self._error is None:
            if self._headed and not self._framed and exc is None:
                self.complete = True
            else:
                self._error = ConnectionLost(answered=self._answered)
        self._wake()
        self._on_lost(self)

    # --- What the parser calls ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self.complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which says nothing to us."""
        if self._headed:
            return
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1")
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        """The head is whole. One of the 100s is only the first of two."""
        if self._surplus:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self._headed = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._surplus:
            self._body.append(body)
            self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._headed and not self._surplus:
            assert self._parser is not None
            self._keep = self._parser.should_keep_alive()
            self.complete = True

    # --- Waiting --------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_end is not None and (self.complete or self._body or self._lost):
            call, self._on_end = self._on_end, None
            call()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _break(self, why: str) -> None:
        self.fail(NotHttp(why))
