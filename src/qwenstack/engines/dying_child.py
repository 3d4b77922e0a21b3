"""Sending a request once more that met a child process which was dying already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from qwenstack.core.generation import Step
from qwenstack.engines.http_pool import CannotConnect
from qwenstack.engines.interface import EngineUnavailable

_DYING_S_MAX: Final = 10.0
_RETRY_S: Final = 0.1
_AT_ONCE_S: Final = 0.5


async def once_more(generate: Callable[[], AsyncGenerator[Step, None]]) -> AsyncGenerator[Step]:
    """The steps of `generate()`, which is called again where the child was dying as it was sent.

    Refused a connection, a request has reached nothing. Broken off at once, it most likely is not
    what killed the child, and is sent once more; broken off later it may be, and would kill the
    next one, too.
    """
    first = time.monotonic()
    resent = False
    while True:
        began = False
        sent = time.monotonic()
        try:
            async with aclosing(generate()) as steps:
                async for step in steps:
                    began = began or bool(step.deltas) or step.final
                    yield step
            return
        except EngineUnavailable as error:
            now = time.monotonic()
            refused = isinstance(error.__cause__, CannotConnect)
            if began or now - first > _DYING_S_MAX:
                raise
            if not refused and (resent or now - sent > _AT_ONCE_S):
                raise
            resent = resent or not refused
        await asyncio.sleep(_RETRY_S)
