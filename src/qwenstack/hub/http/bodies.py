"""Request bodies, bounded in size and in time, decoded at the door; and answers in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

import msgspec
from aiohttp import web

from qwenstack.hub.errors import BadRequest, TooLarge

JSON_BYTES_MAX = 8 * 1024 * 1024
_WHOLE_S = 120.0

# What is handed to a thread at once: enough to be worth it, few enough for one system call.
_FED_BYTES = 4 * 1024 * 1024
_FED_PIECES = 512

P = ParamSpec("P")
T = TypeVar("T")


async def read_json(
    request: web.Request, kind: type[T], *, bytes_max: int = JSON_BYTES_MAX, idle_s: float = 60.0
) -> T:
    """The JSON body as `kind`; an empty one is an empty object. Raises BadRequest, TooLarge."""
    body = await read_body(request, bytes_max=bytes_max, idle_s=idle_s)
    return decode_json(body or b"{}", kind)


def decode_json(body: bytes, kind: type[T]) -> T:
    """JSON from outside as `kind`. Raises BadRequest that says what does not fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The JSON is not as expected: {str(error)[:200]}.") from error
    except RecursionError as error:
        raise BadRequest("The JSON is nested too deeply.") from error


async def read_body(request: web.Request, *, bytes_max: int, idle_s: float = 60.0) -> bytes:
    """The body, whole. Raises TooLarge, TimeoutError when it does not come in time."""
    body = bytearray()
    async with asyncio.timeout(_WHOLE_S):
        async for piece in pieces(request, bytes_max=bytes_max, idle_s=idle_s):
            body += piece
    return bytes(body)


async def pieces(request: web.Request, *, bytes_max: int, idle_s: float) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooLarge, TimeoutError when nothing comes for `idle_s`."""
    announced = request.content_length
    if announced is not None and announced > bytes_max:
        raise TooLarge(f"The body announces {announced} bytes; at most {bytes_max} are taken here.")
    total = 0
    while True:
        async with asyncio.timeout(idle_s):
            piece = await request.content.readany()
        if not piece:
            return
        total += len(piece)
        if total > bytes_max:
            raise TooLarge(f"The body is larger than the {bytes_max} bytes that are taken here.")
        yield piece


async def take_in(
    request: web.Request, feed: Callable[[list[bytes]], None], *, bytes_max: int, idle_s: float
) -> int:
    """Give the body to `feed`, in a thread and some megabytes at a time, while the next ones come;
    its size. Raises what `pieces` and `feed` raise; no call of `feed` runs on after that.
    """
    total = size = 0
    waiting: list[bytes] = []
    feeding: asyncio.Task[None] | None = None
    try:
        async for piece in pieces(request, bytes_max=bytes_max, idle_s=idle_s):
            waiting.append(piece)
            size += len(piece)
            if size >= _FED_BYTES or len(waiting) == _FED_PIECES:
                if feeding is not None:
                    await asyncio.shield(feeding)
                feeding = asyncio.create_task(asyncio.to_thread(feed, waiting))
                total, size, waiting = total + size, 0, []
        if feeding is not None:
            await asyncio.shield(feeding)
    finally:
        if feeding is not None:
            await asyncio.wait({feeding})
    await to_the_end(feed, waiting)
    return total + size


async def to_the_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Work in a thread, and be back only when it is done, also when cancelled: what it uses is
    let go of next.
    """
    task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def json_response(
    value: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """An answer in JSON."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(value),
        content_type="application/json",
        headers=headers,
    )


def flag(request: web.Request, name: str) -> bool:
    """Whether a yes-or-no parameter of the query is set, in the ways that clients write it."""
    return request.query.get(name, "").lower() in ("1", "true", "yes", "on")
