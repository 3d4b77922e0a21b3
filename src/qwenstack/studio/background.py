"""Work that is done again and again beside the requests, for as long as the process serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import DBAPIError

from qwenstack.core.refusals import Refusal

_log = logging.getLogger(__name__)

# How long to wait after a turn that failed, at the least.
PAUSE_S = 1.0


class Background:
    """Does `work` again and again from `start` to `stop`, each turn `every_s` after the last.

    Whatever a turn raises, the next one comes. A task that ended without a word would leave
    revoked keys valid and alerts unsent until somebody wondered, perhaps days later.
    """

    def __init__(self, name: str, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._every_s = every_s
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first turn is `every_s` from now."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Break off the turn that runs, and do no other."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = self._every_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = max(self._every_s, PAUSE_S)
            try:
                await self._work()
                pause_s = self._every_s
            except DBAPIError as error:
                # The journal says so too, and the door closes while it does.
                _log.warning("%s waits for the database: %s", self._name, error.orig)
            except Refusal as refusal:  # the database went away meanwhile
                _log.warning("%s waits: %s", self._name, refusal.message)
            except Exception:  # noqa: BLE001 - what the next line says
                # A defect. It is told as loudly as can be, and must not end what others rely on.
                _log.critical("%s broke off and is tried again", self._name, exc_info=True)
