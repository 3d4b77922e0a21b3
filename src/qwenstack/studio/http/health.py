"""`/healthz` and `/readyz`: whether the process lives, and whether it should get requests."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.installation import Installation
from qwenstack.studio.surfaces.interface import Reply


class Readiness(msgspec.Struct, frozen=True):
    """Each part's state; `ready` only where all are well."""

    ready: bool
    draining: bool
    ledger: str
    engines: dict[str, bool]


class Alive(msgspec.Struct, frozen=True):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Health:
    """Answers the two probes."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    async def alive(self, exchange: Exchange) -> None:
        """200 as long as the event loop turns."""
        await exchange.reply(Reply(200, msgspec.json.encode(Alive())))

    async def ready(self, exchange: Exchange) -> None:
        """200 where requests will be served, else 503 with what is missing."""
        installation = self._installation
        deployments = list(installation.deployments)
        healthy = await asyncio.gather(*(each.engine.healthy() for each in deployments))
        journal = installation.journal
        state = Readiness(
            ready=all(healthy) and journal.healthy and not installation.door.draining,
            draining=installation.door.draining,
            # The database's own words could name hosts: those are for the log.
            ledger="ok" if journal.healthy else "unavailable",
            engines={each.name: up for each, up in zip(deployments, healthy, strict=True)},
        )
        await exchange.reply(Reply(200 if state.ready else 503, msgspec.json.encode(state)))
