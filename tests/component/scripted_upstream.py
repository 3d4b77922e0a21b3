"""A real HTTP server on loopback that answers as a test's script says, also badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any


class Exchange:
    """One request that has come, and the raw connection to answer it on."""

    def __init__(
        self,
        path: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.path = path
        self.headers = headers
        self.body: dict[str, Any] = json.loads(body) if body else {}
        self.reader = reader
        self.writer = writer

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        await self.raw(head.encode() + body)

    async def begin(self) -> None:
        """The headers of an event stream."""
        await self.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def send(self, *events: bytes) -> None:
        """Events, each a chunk of the body, all in one write."""
        await self.raw(b"".join(chunked(event) for event in events))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    def drop(self) -> None:
        """Cut the connection where it is."""
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the client has closed its side."""
        while await self.reader.read(65536):
            pass


Script = Callable[[Exchange], Awaitable[None]]


class Upstream:
    """What a test sees of its server."""

    def __init__(self) -> None:
        self.requests: list[Exchange] = []
        self.connections = 0
        self.base_url = ""

    def generations(self) -> list[Exchange]:
        return [each for each in self.requests if each.path.endswith("/completions")]


@asynccontextmanager
async def upstream(script: Script, *, models: bool = True) -> AsyncIterator[Upstream]:
    """Serve `script` for every request but those for `/v1/models` and `/health`."""
    seen = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            while (exchange := await _receive(reader, writer)) is not None:
                if models and exchange.path == "/v1/models":
                    await exchange.whole(200, b'{"data":[{"id":"m","max_model_len":4096}]}')
                    continue
                seen.requests.append(exchange)
                await script(exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    seen.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield seen
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines if line)
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(first.split(" ")[1], headers, body, reader, writer)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def text(content: str, **fields: object) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return event({"choices": [choice], **fields})


FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
DONE = b"data: [DONE]\n\n"


async def answer(exchange: Exchange) -> None:
    """A whole good answer: `Paris`."""
    await exchange.begin()
    await exchange.send(text("Par"), text("is"), FINISH, USAGE, DONE)
    await exchange.end()
