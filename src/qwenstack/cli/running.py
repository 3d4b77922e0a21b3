"""Serving from the command line: engines up, socket open, wait for a signal, engines down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

from qwenstack.cli.bars import BuildingBars
from qwenstack.engines.interface import EngineError
from qwenstack.studio.deployments import Deployments
from qwenstack.studio.engine_factory import build_deployment
from qwenstack.studio.http.routes import Studio
from qwenstack.studio.http.server import run
from qwenstack.studio.installation import Installation
from qwenstack.studio.observability.logs import configure_logging
from qwenstack.studio.observability.watchers import Watchers
from qwenstack.studio.observability.worker_counts import Place
from qwenstack.studio.settings import Settings

_SUPERVISOR_EVERY_S = 1.0


async def serve_until_stopped(
    settings: Settings,
    home: Path,
    listener: socket.socket,
    *,
    cache: Path,
    on_ready: Callable[[Installation], None],
    place: Place | None = None,
    supervisor: int = 0,
) -> None:
    """Start what the settings deploy and serve it; `on_ready` is called once requests are taken.

    `place` says which of several workers this is, and `supervisor` is the process that runs them.

    Shows on standard error how far long steps are.
    """
    configure_logging(settings.log)
    watchers = Watchers(settings.telemetry, place)
    with BuildingBars() as bars:
        deployments = Deployments(
            [
                await asyncio.to_thread(
                    build_deployment, each, settings.admission, cache=cache, building=bars
                )
                for each in settings.deployments
            ]
        )
        await _serve(settings, home, listener, deployments, watchers, bars, on_ready, supervisor)


async def _serve(
    settings: Settings,
    home: Path,
    listener: socket.socket,
    deployments: Deployments,
    watchers: Watchers,
    bars: BuildingBars,
    on_ready: Callable[[Installation], None],
    supervisor: int,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, watchers.close)
        for deployment in deployments:
            bars.starting(deployment.name)
            stack.push_async_callback(deployment.engine.close)
            try:
                await deployment.engine.start()
            except EngineError as error:
                raise type(error)(f"{deployment.name}: {error}") from error
        installation = await Installation.open(settings, home, deployments, watchers)
        watchers.metrics.watch(installation)
        stack.push_async_callback(installation.close)
        bars.stop()
        studio = Studio(installation, watchers.metrics)
        studio.batches.background.start()
        stack.push_async_callback(studio.batches.background.stop)

        if supervisor:
            following = asyncio.get_running_loop().create_task(_end_with(supervisor))
            stack.callback(following.cancel)

        def stop() -> None:
            installation.door.draining = True

        await run(
            studio.app,
            listener,
            drain_s=settings.server.drain_s,
            on_ready=lambda: on_ready(installation),
            on_stop=stop,
        )


async def _end_with(supervisor: int) -> None:
    """Drain and end once the supervisor is gone: nobody would restart this worker or stop it."""
    # The operating system tells nobody that a parent has ended; it only shows another.
    while os.getppid() == supervisor:  # noqa: ASYNC110
        await asyncio.sleep(_SUPERVISOR_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def run_event_loop(work: Coroutine[object, object, None]) -> None:
    """Run on uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
