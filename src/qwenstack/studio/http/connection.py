"""A connection that a hostile client cannot hold or fill: bounds on headers and on time.

uvicorn parses HTTP with httptools (llhttp), which by itself accepts headers without end and waits
for them for ever.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES_MAX = 32 * 1024
HEADER_COUNT_MAX = 100
HEADER_TIMEOUT_S = 20.0
# What is read and thrown away of a body that was refused, so that its sender sees the answer.
DRAIN_BYTES_MAX = 128 * 1024 * 1024
DRAIN_TIMEOUT_S = 30.0
# The ASGI extension under which a request finds its connection: to be told that the client has
# gone, and to end it.
CONNECTION = "qwenstack.connection"


# How much one read of the socket can bring beyond the head.
_RECEIVE_BYTES = 256 * 1024


class _TooLarge(Exception):
    """Stops the parser from within; it reports this as a request that is none."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds on a request's head.

    A head over `HEADER_BYTES_MAX` or `HEADER_COUNT_MAX` is answered 431, one that takes longer than
    `HEADER_TIMEOUT_S` 408; both close the connection. So does a body that goes on for longer than
    `DRAIN_TIMEOUT_S` or `DRAIN_BYTES_MAX` after it was answered.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_open = False
        self._head_too_large = False
        self._head_timer: TimerHandle | None = None
        self._on_lost: Callable[[], None] | None = None
        self._received = 0
        self._drained = 0
        self._drain_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A new connection owes a head in time."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._stop_timer()
        self._stop_draining()
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()

    def watch(self, on_lost: Callable[[], None] | None) -> None:
        """Call `on_lost` when the client goes away, or now if it has; None for nobody."""
        self._on_lost = on_lost
        if on_lost is not None and self.transport.is_closing():
            on_lost()

    def abort(self) -> None:
        """End the connection now; what was not sent yet is thrown away."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, within bounds."""
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        expecting = self._head_timer is not None
        super().data_received(data)
        # The parser tells of a header once it is whole: one without end is counted here.
        self._received = self._received + len(data) if expecting and self._head_timer else 0
        if self._received > HEADER_BYTES_MAX + _RECEIVE_BYTES and not self.transport.is_closing():
            self._head_too_large = True
            self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request; the parser reports our own bounds through here too."""
        if self._head_too_large:
            self._refuse(431, b"Request Header Fields Too Large", b"so many or so long headers")
        else:
            self._refuse(400, b"Bad Request", b"what is no HTTP request")

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = 0
        self._head_open = True
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: {"watch": self.watch, "abort": self.abort}}

    def on_url(self, url: bytes) -> None:
        """Count the target."""
        self._count(len(url))
        super().on_url(url)

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body; of one that was answered already, only so much is read."""
        if self.cycle.response_complete:
            self._drain(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._stop_draining()
        super().on_message_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value))
        if len(self.headers) >= HEADER_COUNT_MAX:
            self._head_too_large = True
            raise _TooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._stop_timer()
        self._head_open = False
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_open and self._head_bytes > HEADER_BYTES_MAX:
            self._head_too_large = True
            raise _TooLarge

    def _drain(self, size: int) -> None:
        self._drained += size
        if self._drained > DRAIN_BYTES_MAX:
            self.abort()
        elif self._drain_timer is None:
            self._drain_timer = self.loop.call_later(DRAIN_TIMEOUT_S, self.abort)

    def _stop_draining(self) -> None:
        self._drained = 0
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._head_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        self._refuse(408, b"Request Timeout", b"the request's headers in time")

    def _refuse(self, status: int, phrase: bytes, what: bytes) -> None:
        if self.transport.is_closing():
            return
        if (
            self.cycle is not None
            and self.cycle.response_started
            and not self.cycle.response_complete
        ):
            # An answer is on its way: words of ours would stand in the middle of it.
            self.abort()
            return
        body = (
            b'{"error":{"message":"This server could not take '
            + what
            + b'.","type":"invalid_request_error","param":null,"code":"invalid_request"}}'
        )
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, phrase, len(body), body)
        )
        self.transport.close()
