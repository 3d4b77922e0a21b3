"""The tenancy as a running process sees it: a snapshot that follows the database."""

from __future__ import annotations

import asyncio
import contextlib

from sqlalchemy import Engine

from qwenstack.core.refusals import Refusal
from qwenstack.storage.database import reading
from qwenstack.studio.accounts import read_tenancy, touch_keys
from qwenstack.studio.background import Background
from qwenstack.studio.changes import FUNDS_TOPIC, TENANCY, version_of
from qwenstack.studio.ledger.funds import Funds
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.writes import Run
from qwenstack.studio.tenancy import Caller, Scope, Tenancy

# How long an act of another process (a revoked key, a top-up) takes to be seen at the most.
POLL_S = 0.5
_NOTE_USE_EVERY_S = 30.0


class Tenants:
    """Holds the current `Tenancy` and replaces it when it changed."""

    def __init__(self, database: Engine, journal: Journal, funds: Funds) -> None:
        self.current = Tenancy(version=-1)
        self._database = database
        self._journal = journal
        self._funds = funds
        self._funds_version = -1
        self._used: dict[str, int] = {}
        self._background = (
            Background("the look for changed tenants", POLL_S, self.follow),
            Background("the note of used keys", _NOTE_USE_EVERY_S, self._note_use),
        )

    def caller(self, secret: str | None, scope: Scope, now_us: int) -> Caller:
        """Authenticate and note the key's use; raises Refusal."""
        caller = self.current.caller(secret, scope, now_us)
        self._used[caller.key.id] = now_us
        return caller

    async def start(self) -> None:
        """Read the tenancy and follow it from now on."""
        await self.follow()
        for each in self._background:
            each.start()

    async def stop(self) -> None:
        """Stop following."""
        for each in self._background:
            await each.stop()
        with contextlib.suppress(Refusal):  # the database is away
            await self._note_use()

    async def follow(self) -> None:
        """Take up what changed since the last look."""
        tenancy_version, funds_version = await asyncio.to_thread(self._versions)
        if tenancy_version != self.current.version:
            self.current = await asyncio.to_thread(self._read)
        if funds_version != self._funds_version:
            await self._funds.refresh()
            self._funds_version = funds_version

    def _versions(self) -> tuple[int, int]:
        with reading(self._database) as connection:
            return version_of(connection, TENANCY), version_of(connection, FUNDS_TOPIC)

    def _read(self) -> Tenancy:
        with reading(self._database) as connection:
            return read_tenancy(connection)

    async def _note_use(self) -> None:
        used, self._used = self._used, {}
        if used and self._journal.healthy:
            await self._journal.submit(Run(lambda connection: touch_keys(connection, used)))
