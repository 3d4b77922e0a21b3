"""Serving from the command line: engines up, socket open, wait for a signal, engines down."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

from qwenstack.engines.interface import EngineError
from qwenstack.studio.deployments import Deployment, Deployments
from qwenstack.studio.engine_factory import build_deployment
from qwenstack.studio.http.routes import Studio
from qwenstack.studio.http.server import run
from qwenstack.studio.installation import Installation
from qwenstack.studio.observers import Silent
from qwenstack.studio.settings import Settings


async def serve_until_stopped(
    settings: Settings,
    home: Path,
    listener: socket.socket,
    *,
    on_engine: Callable[[Deployment], None],
    on_ready: Callable[[Installation], None],
) -> None:
    """Start what the settings deploy and serve it.

    `on_engine` is called before each engine starts (embedded ones take seconds), `on_ready` when
    requests are taken.
    """
    deployments = Deployments(
        build_deployment(each, settings.admission) for each in settings.deployments
    )
    async with contextlib.AsyncExitStack() as stack:
        for deployment in deployments:
            on_engine(deployment)
            stack.push_async_callback(deployment.engine.close)
            try:
                await deployment.engine.start()
            except EngineError as error:
                raise type(error)(f"{deployment.name}: {error}") from error
        installation = await Installation.open(settings, home, deployments, Silent())
        stack.push_async_callback(installation.close)
        studio = Studio(installation)
        studio.batches.start()
        stack.push_async_callback(studio.batches.stop)

        def stop() -> None:
            installation.door.draining = True

        await run(
            studio.app,
            listener,
            drain_s=settings.server.drain_s,
            on_ready=lambda: on_ready(installation),
            on_stop=stop,
        )


def run_event_loop(work: Coroutine[object, object, None]) -> None:
    """Run on uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
