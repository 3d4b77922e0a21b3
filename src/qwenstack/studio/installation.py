"""One process of the studio, put together: storage, ledger, limits, tenants, the serving path."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, Engine

from qwenstack.core.identifiers import new_id
from qwenstack.storage.database import open_database
from qwenstack.studio.accounts import put_plan, read_tenancy
from qwenstack.studio.admission.limits import Limiter
from qwenstack.studio.admission.memory import MemoryLimiter
from qwenstack.studio.admission.valkey import ValkeyLimiter
from qwenstack.studio.admit import Door
from qwenstack.studio.alerts.destination import parse_networks
from qwenstack.studio.alerts.sending import Sender
from qwenstack.studio.alerts.signing import KEY_NAME
from qwenstack.studio.alerts.watch import AlertWatch
from qwenstack.studio.background import Background
from qwenstack.studio.deployments import Deployments
from qwenstack.studio.ledger.funds import Funds, MemoryFunds, SharedFunds
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.recovery import HEARTBEAT_S, heartbeat, recover
from qwenstack.studio.ledger.spool import Spool, left_behind, put_aside
from qwenstack.studio.ledger.streams import OpenStreams
from qwenstack.studio.ledger.writes import Refused, Run, write_each
from qwenstack.studio.observers import Observer
from qwenstack.studio.price_book import PriceShelf, load_shelf
from qwenstack.studio.serving import Serving
from qwenstack.studio.settings import Settings
from qwenstack.studio.tenancy import Plan
from qwenstack.studio.tenants import Tenants

_log = logging.getLogger(__name__)

DATABASE_NAME = "qwenstack.db"
SPOOL_FOLDER = "spool"


class AlreadyRunning(Exception):
    """Another process serves from this home folder."""


def database_url(settings: Settings, home: Path) -> str:
    """The configured database, or SQLite in the home folder."""
    return settings.database.url or f"sqlite:///{home / DATABASE_NAME}"


def alert_sender(settings: Settings, home: Path) -> Sender:
    """What signs and sends alerts, with the key file of this home or the one that is configured."""
    alerts = settings.alerts
    key = Path(alerts.key_file).expanduser() if alerts.key_file else home / KEY_NAME
    return Sender(key, parse_networks(alerts.allow_networks))


def prepare(settings: Settings, home: Path) -> Engine:
    """Open the database and make sure that the default plan exists."""
    home.mkdir(parents=True, exist_ok=True)
    database = open_database(database_url(settings, home))
    with database.begin() as connection:
        if "default" not in read_tenancy(connection).plans:
            put_plan(connection, actor="system", plan=Plan(id="default"))
    return database


class Installation:
    """Everything that serves requests in one process, from `open` to `close`."""

    def __init__(
        self,
        settings: Settings,
        home: Path,
        deployments: Deployments,
        observer: Observer,
        *,
        database: Engine,
        limiter: Limiter,
        worker_id: str,
    ) -> None:
        self.settings = settings
        self.home = home
        self.deployments = deployments
        self.observer = observer
        self.database = database
        self.limiter = limiter
        self.worker_id = worker_id
        self.shared = database.dialect.name == "postgresql"
        self.prices: PriceShelf = load_shelf(
            *(Path(folder).expanduser() for folder in settings.prices.folders)
        )
        spool = Spool(home / SPOOL_FOLDER, worker_id)
        self.journal = Journal(database, spool, None if self.shared else spool.ahead())
        self.funds: Funds = (
            SharedFunds(self.journal, worker_id) if self.shared else MemoryFunds(self.journal)
        )
        self.streams = OpenStreams(self.journal, worker_id)
        self.tenants = Tenants(database, self.journal, self.funds)
        self.alerts = AlertWatch(
            database, self.journal, alert_sender(settings, home), lambda: self.tenants.current
        )
        self.door = Door(
            deployments=deployments,
            prices=self.prices,
            limiter=limiter,
            funds=self.funds,
            journal=self.journal,
        )
        self.serving = Serving(
            limiter=limiter,
            funds=self.funds,
            journal=self.journal,
            streams=self.streams,
            observer=observer,
        )
        # Such as two workers that settle the same streams of a dead one at once is tried again. To
        # be silent from then on would have the others settle what runs here.
        self._living = Background("the look for dead workers", HEARTBEAT_S, self._live_on)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        home: Path,
        deployments: Deployments,
        observer: Observer,
    ) -> Installation:
        """Open storage, settle what a dead process left, and begin to follow the tenants.

        Engines are the caller's to start and close.
        """
        limiter = await _open_limiter(settings.admission.url)
        database = await asyncio.to_thread(prepare, settings, home)
        installation = cls(
            settings,
            home,
            deployments,
            observer,
            database=database,
            limiter=limiter,
            worker_id=new_id("wrk"),
        )
        await installation._start()
        return installation

    async def _start(self) -> None:
        await self._live()
        await self.tenants.start()
        self.streams.background.start()
        self.alerts.background.start()
        if self.shared:
            self._living.start()

    async def _live(self) -> None:
        worker_id, alone = self.worker_id, not self.shared
        folder = self.home / SPOOL_FOLDER

        def act(connection: Connection) -> int:
            # Whole bills first: the saved stream of the same request is then settled already.
            results = write_each(connection, bills)
            pairs = zip(bills, results, strict=True)
            settled, refused = recover(connection, alone=alone)
            lost = [bill for bill, result in pairs if isinstance(result, Refused)]
            put_aside(folder, [*lost, *refused])
            heartbeat(connection, worker_id)
            return settled + results.count(True)

        with left_behind(folder) as bills:
            settled = await self.journal.submit(Run(act))
        if settled:
            _log.info("settled %s requests that a dead process had under way", settled)

    async def _live_on(self) -> None:
        if self.journal.healthy:
            await self._live()

    async def close(self) -> None:
        """Finish what runs in the background, write what waits, close the database."""
        self.door.draining = True
        await self.serving.drain(self.settings.server.drain_s)
        await self.streams.background.stop()
        await self.alerts.background.stop()
        await self.tenants.stop()
        await self._living.stop()
        await self.limiter.close()
        left = await asyncio.to_thread(self.journal.close)
        if left:
            _log.critical("%s writes could not reach the database", len(left))
        self.database.dispose()


async def _open_limiter(url: str) -> Limiter:
    if not url:
        return MemoryLimiter()
    limiter = ValkeyLimiter(url)
    await limiter.start()
    return limiter


@contextlib.contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the home folder: with SQLite a single process serves from it. Raises AlreadyRunning."""
    home.mkdir(parents=True, exist_ok=True)
    lock: IO[str]
    with (home / "serving.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another qwenstack serves from {home}; stop it, or set QWENSTACK_HOME to another "
                "folder"
            ) from None
        yield
