"""One HTTP request and its answer, over ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from qwenstack.core.identifiers import new_id
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.http.connection import CONNECTION
from qwenstack.studio.surfaces.interface import Reply

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]

BODY_TIMEOUT_S = 60.0
SEND_TIMEOUT_S = 120.0
# An upload that keeps dripping below this rate is ended, however long it may take in all.
UPLOAD_BYTES_PER_S_MIN = 16 * 1024


class ClientGone(Exception):
    """The client closed the connection, or reads too slowly to be served."""


class Exchange:
    """A request as it arrived and the means to answer it.

    `headers` has lower-case names; of repeated ones the last counts, as everywhere in our surfaces.
    `peer` is the address that the connection comes from, None where the server does not know.
    """

    __slots__ = (
        "_abort",
        "_receive",
        "_send",
        "_started",
        "_task",
        "_watch",
        "client_gone",
        "headers",
        "method",
        "path",
        "peer",
        "query",
        "request_id",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope.get("client")
        self.peer: str | None = client[0] if client else None
        self.request_id = new_id("req")
        self.client_gone = False
        self._receive = receive
        self._send = send
        self._started = False
        connection = scope["extensions"][CONNECTION]
        self._watch: Callable[[Callable[[], None] | None], None] = connection["watch"]
        self._abort: Callable[[], None] = connection["abort"]
        self._task: asyncio.Task[Any] | None = None

    @property
    def started(self) -> bool:
        """Whether the answer's head was sent."""
        return self._started

    @property
    def secret(self) -> str | None:
        """The API key sent: a bearer token, or `x-api-key` as Anthropic's clients send it."""
        value = self.headers.get(b"authorization")
        if value is None:
            value = self.headers.get(b"x-api-key", b"")
            return value.decode("latin-1").strip() or None
        scheme, _, token = value.decode("latin-1").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    async def body(self, bytes_max: int) -> bytes:
        """The whole request body; raises Refusal over `bytes_max`, ClientGone when it breaks off.

        A body that announces too much is refused before it is read.
        """
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > bytes_max:
            raise _too_large(bytes_max)
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False) and message["type"] == "http.request":
            if len(body) > bytes_max:
                raise _too_large(bytes_max)
            return body
        return await self._rest_of_body(message, bytearray(body), bytes_max)

    async def _rest_of_body(
        self, message: MutableMapping[str, Any], body: bytearray, bytes_max: int
    ) -> bytes:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while message["type"] == "http.request" and message.get("more_body", False):
                    if len(body) > bytes_max:
                        raise _too_large(bytes_max)
                    message = await self._receive()
                    body += message.get("body", b"")
        except TimeoutError as error:
            raise Refusal(
                RefusalKind.INVALID_REQUEST,
                f"The request's body did not arrive within {BODY_TIMEOUT_S:.0f} s.",
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientGone
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
        return bytes(body)

    async def body_pieces(self, bytes_max: int) -> AsyncIterator[bytes]:
        """The request body as it arrives; the same errors as `body`."""
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > bytes_max:
            raise _too_large(bytes_max)
        size, more = 0, True
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while more:
            end_s = begun_s + BODY_TIMEOUT_S + size / UPLOAD_BYTES_PER_S_MIN
            try:
                async with asyncio.timeout_at(min(end_s, loop.time() + BODY_TIMEOUT_S)):
                    message = await self._receive()
            except TimeoutError as error:
                raise Refusal(
                    RefusalKind.INVALID_REQUEST,
                    f"The request's body came too slowly: nothing for {BODY_TIMEOUT_S:.0f} s, or "
                    f"less than {UPLOAD_BYTES_PER_S_MIN} bytes a second.",
                ) from error
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(piece)
            if size > bytes_max:
                raise _too_large(bytes_max)
            yield piece

    def watch(self) -> None:
        """From now on, cancel the current task when the client goes away (see `client_gone`).

        A client that takes nothing for `SEND_TIMEOUT_S` counts as gone.
        """
        self._task = asyncio.current_task()
        self._watch(self._gone)

    def unwatch(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task = None
            self._watch(None)

    def _gone(self) -> None:
        self.client_gone = True
        if self._task is not None:
            self._task.cancel()

    async def start(
        self, status: int, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Send the head of an answer whose length is not known yet."""
        self._started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", content_type),
                    *self._id_headers(),
                    (b"cache-control", b"no-store"),
                    *headers,
                ],
            }
        )

    def _id_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The request's id under the names that OpenAI's and Anthropic's clients look for."""
        value = self.request_id.encode()
        return (b"x-request-id", value), (b"request-id", value)

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body; a client that does not take it in time counts as gone."""
        timer = asyncio.get_running_loop().call_later(SEND_TIMEOUT_S, self._gone)
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            timer.cancel()
        if not more:
            # An answer that is complete is no reason to be cancelled.
            self.unwatch()

    async def reply_pieces(self, size: int, content_type: bytes, pieces: Iterator[bytes]) -> None:
        """Send a stored file of known size; reading it happens off the event loop."""
        self.unwatch()
        self._started = True
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % size),
            (b"x-request-id", self.request_id.encode()),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            await self.write(piece)
        await self.write(b"", more=False)

    async def reply(self, reply: Reply) -> None:
        """Send a whole answer."""
        self.unwatch()
        self._started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [
                    (b"content-type", reply.content_type),
                    (b"content-length", b"%d" % len(reply.body)),
                    *self._id_headers(),
                    *reply.headers,
                ],
            }
        )
        # A client that never reads must not hold the answer, the task and the socket for ever.
        timer = asyncio.get_running_loop().call_later(SEND_TIMEOUT_S, self._abort)
        try:
            await self._send({"type": "http.response.body", "body": reply.body, "more_body": False})
        finally:
            timer.cancel()


def _too_large(bytes_max: int) -> Refusal:
    return Refusal(
        RefusalKind.BODY_TOO_LARGE,
        f"The request's body is larger than {bytes_max} bytes; send a smaller one.",
    )
