"""Removing what uploads left: at the start what a kill left, later what nobody came back for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import web
from sqlalchemy.exc import DBAPIError

from qwenstack.core.instants import now_us
from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.uploads import end_upload, old_uploads, remove_parts, remove_strangers
from qwenstack.hub.registry.waiting import forget_removed
from qwenstack.storage.database import reading

_LOG = logging.getLogger(__name__)
_EVERY_S = 3600.0
# Longer than an upload's URLs hold, so that none is removed under a client that still may use it.
_ABANDONED_URLS = 3


def tidying(hub: Hub, app: web.Application) -> None:
    """Let the application tidy `hub.uploads` for as long as it runs."""

    async def tidy(_: web.Application) -> AsyncIterator[None]:
        await asyncio.to_thread(remove_unknown, hub)
        task = asyncio.create_task(_every_hour(hub))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app.cleanup_ctx.append(tidy)


def remove_unknown(hub: Hub) -> None:
    """Remove spooled bodies, and parts of uploads that are over. Only before requests are taken."""
    with reading(hub.database) as connection:
        known = [each.id for each in old_uploads(connection, now_us())]
    remove_strangers(hub.uploads, known)


def remove_abandoned(hub: Hub) -> int:
    """End uploads whose URLs have long expired, with their parts; how many."""
    before_us = now_us() - _ABANDONED_URLS * hub.settings.upload_url_s * 1_000_000
    with hub.database.begin() as connection:
        abandoned = old_uploads(connection, before_us)
        for each in abandoned:
            end_upload(connection, each.id)
        forget_removed(connection)
    for each in abandoned:
        remove_parts(hub.uploads, each.id)
    return len(abandoned)


async def _every_hour(hub: Hub) -> None:
    while True:
        try:
            await asyncio.to_thread(remove_abandoned, hub)
        except (DBAPIError, OSError) as error:
            _LOG.warning("abandoned uploads stay for now: %s", error)
        await asyncio.sleep(_EVERY_S)
