"""After a push or a merge: tell who listens."""

from __future__ import annotations

import asyncio
import logging

from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.repos import Repo

_LOG = logging.getLogger(__name__)


async def announce(hub: Hub, repo: Repo, ref: str, oid: str) -> None:
    """Call each listener with the ref that moved (its full name) and its new commit.

    The push stands already, so what goes wrong in a listener is logged as the defect that it is.
    """
    for listener in hub.commit_listeners:
        task = asyncio.ensure_future(asyncio.to_thread(listener, repo, ref, oid))
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("after a push to %s: %r", repo.name, error, exc_info=error)
