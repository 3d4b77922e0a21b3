"""Listens and serves until stopped; then lets running requests end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from qwenstack.hub.http.app import make_app
from qwenstack.hub.hub import Hub

_BACKLOG = 256
_KEEP_ALIVE_S = 75.0
# The default of 64 KiB has a large body stop and go on four times as often.
_READ_BYTES = 1024 * 1024
_LINE_BYTES_MAX = 8190
_HEADER_BYTES_MAX = 8190


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


async def run(
    hub: Hub,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`; running requests have `settings.drain_s` to end.

    Needs the standard asyncio loop: uvloop has no sendfile of the kernel's.
    """
    stop = stop or asyncio.Event()
    runner = web.AppRunner(
        make_app(hub),
        access_log=None,
        keepalive_timeout=_KEEP_ALIVE_S,
        read_bufsize=_READ_BYTES,
        max_line_size=_LINE_BYTES_MAX,
        max_field_size=_HEADER_BYTES_MAX,
        shutdown_timeout=hub.settings.drain_s,
        # A caller that hangs up ends its handler, and with it what the handler holds.
        handler_cancellation=True,
    )
    await runner.setup()
    site = web.SockSite(runner, listener, backlog=_BACKLOG)
    await site.start()
    loop = asyncio.get_running_loop()
    try:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
    except (ValueError, RuntimeError):
        pass  # in a thread other than the main one, only `stop` ends it
    try:
        on_ready()
        await stop.wait()
        on_stop()
    finally:
        await runner.cleanup()
