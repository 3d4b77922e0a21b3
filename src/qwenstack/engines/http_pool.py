"""Connections to one server, kept between requests and never more than so many."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque

from yarl import URL

from qwenstack.engines.http_connection import HttpConnection


class CannotConnect(Exception):
    """Nobody answers at the server's address, or not who its certificate should say."""


class NoConnectionInTime(Exception):
    """Every connection stayed busy, or the server took none, for as long as may be waited."""


class HttpPool:
    """Makes, keeps and hands out connections to the server of `url`.

    Times are in seconds. `keepalive_s` None keeps none. Of the idle ones the last used is taken.
    """

    def __init__(
        self,
        url: URL,
        *,
        connections_max: int,
        keepalive_s: float | None,
        connect_s: float,
        wait_s: float,
        buffer_bytes: int,
    ) -> None:
        assert url.raw_host is not None and url.port is not None
        self._address = (url.raw_host, url.port)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._connections_max = connections_max
        self._keepalive_s = keepalive_s
        self._connect_s = connect_s
        self._wait_s = wait_s
        self._buffer_bytes = buffer_bytes
        self._places = 0
        self._all: set[HttpConnection] = set()
        self._idle: list[HttpConnection] = []
        self._waiting: deque[asyncio.Future[HttpConnection | None]] = deque()
        self._tidying: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self, *, fresh: bool = False) -> HttpConnection:
        """A connection of one's own until `give_back`; `fresh` says: none that was used before.

        Raises CannotConnect and NoConnectionInTime.
        """
        while True:
            while self._idle and not fresh:
                connection = self._idle.pop()
                if self._usable(connection):
                    connection.reused = True
                    return connection
                connection.abort()
            if self._places < self._connections_max:
                self._places += 1
                return await self._connect()
            if self._idle:
                self._idle.pop(0).abort()  # its place becomes free for the fresh one
            given = await self._wait_for_one()
            if given is None:
                if self._closed:
                    self._free_place()
                    raise CannotConnect("the pool was closed")
                return await self._connect()
            if given.alive and not fresh:
                return given
            if given in self._all:
                self._all.discard(given)  # its place is the new one's
                given.abort()
                return await self._connect()
            # It was lost on its way here, and its place went to somebody else.

    def give_back(self, connection: HttpConnection) -> None:
        """Keep a connection for the next request, or close it where it cannot be."""
        if self._closed or self._keepalive_s is None or not connection.reusable:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                connection.reused = True
                waiting.set_result(connection)
                return
        self._idle.append(connection)
        if self._tidying is None:
            self._tidying = loop.call_later(self._keepalive_s, self._tidy)

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        for connection in list(self._all):
            connection.abort()

    def _usable(self, connection: HttpConnection) -> bool:
        assert self._keepalive_s is not None
        age_s = asyncio.get_running_loop().time() - connection.idle_since_s
        return connection.alive and age_s < self._keepalive_s

    async def _wait_for_one(self) -> HttpConnection | None:
        """A connection that was given back, or None for a place that became free."""
        waiting: asyncio.Future[HttpConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiting
        except BaseException as error:
            if waiting.done() and not waiting.cancelled():
                given = waiting.result()
                if given is None:
                    self._free_place()
                else:
                    given.abort()
            if isinstance(error, TimeoutError):
                raise NoConnectionInTime("every connection stayed busy") from error
            raise

    async def _connect(self) -> HttpConnection:
        """A new connection, for a place that is taken already."""
        loop = asyncio.get_running_loop()
        host, port = self._address
        try:
            async with asyncio.timeout(self._connect_s):
                transport, connection = await loop.create_connection(
                    lambda: HttpConnection(self._buffer_bytes, self._gone),
                    host,
                    port,
                    ssl=self._tls,
                    server_hostname=host if self._tls else None,
                )
        except BaseException as error:
            self._free_place()
            if isinstance(error, TimeoutError):
                raise NoConnectionInTime("the server took no connection in time") from error
            # A certificate's fault is an OSError, too; a name that none can have is the other.
            if isinstance(error, OSError | UnicodeError):
                raise CannotConnect(str(error)) from error
            raise
        self._all.add(connection)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._closed:
            connection.abort()
        return connection

    def _gone(self, connection: HttpConnection) -> None:
        if connection not in self._all:
            return  # its place is free already, or another's
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._free_place()

    def _free_place(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._places -= 1

    def _tidy(self) -> None:
        """Close what has been idle for too long, in one timer."""
        self._tidying = None
        assert self._keepalive_s is not None
        for connection in [each for each in self._idle if not self._usable(each)]:
            self._idle.remove(connection)
            connection.abort()
        if self._idle and not self._closed:
            loop = asyncio.get_running_loop()
            self._tidying = loop.call_later(self._keepalive_s, self._tidy)
