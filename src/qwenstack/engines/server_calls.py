"""Asking one server over HTTP: requests in flight, their limits, and what a failure stands for.

Timers cost more than reads where events come by the hundred, so that one looks after them all.
"""

from __future__ import annotations

import asyncio
import math

from yarl import URL

from qwenstack.core.trace_context import TraceContext
from qwenstack.engines.http_connection import ConnectionLost, HttpConnection, NotHttp
from qwenstack.engines.http_pool import CannotConnect, HttpPool, NoConnectionInTime
from qwenstack.engines.interface import (
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from qwenstack.engines.openai_errors import decode_error
from qwenstack.engines.openai_settings import OpenAIServer

_ERROR_BODY_BYTES_MAX = 64 * 1024
_DRAIN_S = 1.0
_STALE_S = 2.0


class Exchange:
    """One request in flight.

    `waiting_since` is when the current read began, inf between reads. `whole` is set once the
    answer's last event is here, though not yet the end of its body.
    """

    __slots__ = ("connection", "limit_s", "started", "waiting_since", "whole")

    def __init__(self, connection: HttpConnection, started: float, limit_s: float) -> None:
        self.connection = connection
        self.started = started
        self.limit_s = limit_s
        self.waiting_since = started
        self.whole = False


class _Closed(Exception):
    """The engine was closed under a read."""


class _Silent(Exception):
    """A read has waited for too long."""


class ServerCalls:
    """Requests to one server, between `start` and `close`. Every failure is an EngineError."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server
        # What no error may repeat.
        self.hidden = () if server.api_key is None else (server.api_key,)
        self._url = server.url("/chat/completions")
        self._head = _request_head(self._url, server.headers())
        self._pool: HttpPool | None = None
        self._exchanges: set[Exchange] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        shortest = min(server.first_byte_s, server.idle_s, server.total_s)
        self._sweep_s = min(1.0, shortest / 4)

    def start(self) -> None:
        """Have connections from now on; twice is once."""
        server = self._server
        self._pool = self._pool or HttpPool(
            self._url,
            connections_max=server.max_connections,
            keepalive_s=server.keepalive_s,
            connect_s=server.connect_s,
            wait_s=server.pool_wait_s,
            buffer_bytes=server.read_buffer_bytes,
        )

    def close(self) -> None:
        """Close every connection; what runs on one ends with EngineUnavailable."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for exchange in self._exchanges:
            exchange.connection.fail(_Closed())
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        pool.close()

    async def open(
        self,
        url: URL,
        body: bytes | None,
        method: str = "POST",
        trace: TraceContext | None = None,
    ) -> Exchange:
        """Send a request and wait for the answer's head."""
        request = self._request(url, body, method, trace)
        fresh = False
        while True:
            exchange = await self._begin(fresh=fresh)
            connection = exchange.connection
            try:
                connection.send(request)
                await connection.head()
            except ConnectionLost as error:
                self.finish(exchange)
                # The server may close a pooled connection just as it is taken for reuse: that shows
                # at once, and one more attempt tells it apart from a server that is gone. What the
                # server died of after a while must not go to its successor, too.
                late = asyncio.get_running_loop().time() - exchange.started > _STALE_S
                if error.answered or late or not connection.reused:
                    raise EngineUnavailable(f"{self._server.name} closed the connection") from error
                fresh = True
            except NotHttp:
                self.finish(exchange)
                # Its words may quote what the server sent.
                raise EngineProtocolError(f"{self._server.name} sent what is not HTTP") from None
            except _Silent as error:
                self.finish(exchange)
                raise EngineTimeout(
                    f"{self._server.name} sent no answer within {self._server.first_byte_s:g} s"
                ) from error
            except _Closed as error:
                self.finish(exchange)
                raise EngineUnavailable(f"{self._server.name} was closed") from error
            except BaseException:
                self.finish(exchange)
                raise
            else:
                exchange.waiting_since = math.inf
                return exchange

    async def _begin(self, *, fresh: bool) -> Exchange:
        """A connection for a request that is watched from now on."""
        server, pool = self._server, self._pool
        if pool is None:
            raise EngineUnavailable(f"{server.name} is not started")
        try:
            connection = await pool.take(fresh=fresh)
        except NoConnectionInTime as error:
            raise EngineUnavailable(f"{server.name} gave no connection in time") from error
        except CannotConnect as error:
            raise EngineUnavailable(f"{server.name} cannot be reached") from error
        loop = asyncio.get_running_loop()
        exchange = Exchange(connection, loop.time(), server.first_byte_s)
        self._exchanges.add(exchange)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._sweep_s, self._sweep)
        return exchange

    def _request(
        self, url: URL, body: bytes | None, method: str, trace: TraceContext | None
    ) -> bytes:
        traced = "" if trace is None else _lines(trace.headers())
        return b"%b %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
            method.encode(),
            url.raw_path_qs.encode(),
            self._head,
            traced.encode(),
            len(body or b""),
            body or b"",
        )

    async def read(self, exchange: Exchange, began: bool = False) -> bytes:
        """All bytes that have come, at least one; empty at the clean end of the body."""
        exchange.waiting_since = asyncio.get_running_loop().time()
        try:
            read = await exchange.connection.read()
        except _Silent as error:
            raise EngineTimeout(
                f"{self._server.name} fell silent for {exchange.limit_s:g} s"
            ) from error
        except _Closed as error:
            raise EngineUnavailable(f"{self._server.name} was closed") from error
        except (ConnectionLost, NotHttp) as error:
            if self._pool is None:  # what ends with the engine need not have waited for it
                raise EngineUnavailable(f"{self._server.name} was closed") from error
            message = f"{self._server.name} broke its answer off"
            if began:
                raise EngineProtocolError(message) from error
            raise EngineUnavailable(message) from error
        exchange.waiting_since = math.inf
        exchange.limit_s = self._server.idle_s
        return read

    async def body(self, exchange: Exchange, limit_bytes: int) -> bytes:
        """A whole body of at most `limit_bytes`."""
        reads: list[bytes] = []
        size = 0
        while read := await self.read(exchange):
            size += len(read)
            if size > limit_bytes:
                raise EngineProtocolError(
                    f"{self._server.name} sent an answer of more than {limit_bytes} bytes"
                )
            reads.append(read)
        return b"".join(reads)

    async def refusal(self, exchange: Exchange) -> EngineError:
        """What an answer that is not 200 stands for."""
        try:
            body = await self.body(exchange, _ERROR_BODY_BYTES_MAX)
        except EngineError:
            body = b""  # the status alone says enough
        return decode_error(exchange.connection.status, body, hide=self.hidden)

    async def call(self, url: URL, body: bytes, *, trace: TraceContext | None = None) -> bytes:
        """Exchange whole bodies."""
        exchange = await self.open(url, body, trace=trace)
        try:
            if exchange.connection.status != 200:
                raise await self.refusal(exchange)
            return await self.body(exchange, self._server.max_body_bytes)
        finally:
            self.finish(exchange)

    async def probe(self, url: URL) -> bytes | None:
        """GET a route within `probe_s`; None where the server has no such route."""
        try:
            async with asyncio.timeout(self._server.probe_s):
                exchange = await self.open(url, None, "GET")
                try:
                    status = exchange.connection.status
                    if status in (404, 405, 501):
                        return None
                    if status != 200:
                        raise await self.refusal(exchange)
                    return await self.body(exchange, self._server.max_body_bytes)
                finally:
                    self.finish(exchange)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{self._server.name} did not answer within {self._server.probe_s:g} s"
            ) from error
        except EngineRejected as error:
            raise EngineUnavailable(f"{self._server.name} refuses to be probed") from error

    def finish(self, exchange: Exchange) -> None:
        """Give the connection back where its answer was read to the end, else close it.

        Closing is what cancels a generation in the server. Where only the end of the chunked body
        is still to come, it is read off the hot path, so that the connection is kept and the
        caller does not wait for it.
        """
        self._exchanges.discard(exchange)
        connection, pool = exchange.connection, self._pool
        if pool is None:
            connection.abort()
        elif connection.complete or not exchange.whole:
            pool.give_back(connection)
        else:
            late = asyncio.get_running_loop().call_later(_DRAIN_S, connection.abort)

            def ended() -> None:
                late.cancel()
                pool.give_back(connection)

            connection.when_ended(ended)

    def _sweep(self) -> None:
        """End the reads that have waited too long, all in one timer."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for exchange in self._exchanges:
            silent = now - exchange.waiting_since > exchange.limit_s
            if silent or (
                now - exchange.started > self._server.total_s and exchange.waiting_since < now
            ):
                exchange.connection.fail(_Silent())
        self._sweeper = loop.call_later(self._sweep_s, self._sweep) if self._exchanges else None


def _request_head(url: URL, headers: dict[str, str]) -> bytes:
    """The lines of a request's head that are the same for every request to a server."""
    return _lines({"Host": url.host_port_subcomponent or "", **headers}).encode("latin-1")


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
