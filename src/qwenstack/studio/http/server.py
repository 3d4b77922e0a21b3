"""Running the application on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable

import uvicorn

from qwenstack.studio.http.app import App
from qwenstack.studio.http.connection import Connection

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_COLLECT_EVERY = 10_000


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any. Raises OSError with the address in its message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio has what is written leave at once (no Nagle) only where a socket names its protocol.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port, or "
            "--port 0 for any"
        ) from error
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def base_url(listener: socket.socket) -> str:
    """The URL at which clients of this machine reach the listener."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: App, drain_s: float) -> uvicorn.Server:
    """The HTTP server over `app`, with our bounds on connections."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            date_header=True,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(drain_s) or 1,
        )
    )


async def run(
    app: App,
    listener: socket.socket,
    *,
    drain_s: float,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end within `drain_s` seconds.

    `on_ready` is called once requests are taken; `on_stop` when the signal came, before the wait.
    """
    server = make_server(app, drain_s)
    # The signals are ours: draining begins before uvicorn closes its listener.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        on_stop()
        server.should_exit = True

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    serving = loop.create_task(server.serve(sockets=[listener]))
    # uvicorn has no hook for this moment: it only sets a flag.
    while not server.started and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    if not serving.done():
        _settle_memory()
        on_ready()
    await serving


def _settle_memory() -> None:
    """Have the garbage collector look no more at what was loaded to start.

    Under load it went through all of that again and again, and nobody was answered meanwhile: a
    seventh of the processor time of a request. Nearly all that a request makes goes with its last
    reference; the little that is left for the collector waits longer now, and is as bounded.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
