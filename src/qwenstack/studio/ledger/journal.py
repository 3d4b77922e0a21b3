"""Group commit: one thread that turns whatever waits into one durable transaction at a time.

While one transaction is on its way to the disk, the next batch gathers; so durability costs a
response its own commit at the most, and throughput hardly anything.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.storage.database import is_gone
from qwenstack.studio.ledger.spool import Spool
from qwenstack.studio.ledger.writes import Settle, Write, write_all

_log = logging.getLogger(__name__)

BATCH_MAX = 512
PENDING_MAX = 20_000
PATIENCE_S = 15.0
_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 1.0


class _Pending(msgspec.Struct):
    since_s: float
    write: Write
    future: asyncio.Future[object]
    loop: asyncio.AbstractEventLoop
    then: Callable[[object], None] | None


class Journal:
    """Writes to the database in order, in batches, each acknowledged once it is durable.

    When the database goes away, what was handed in stays and is tried again until it is back:
    nothing that was accepted is lost while the process lives, and with a `spool` no bill is lost
    when it is killed, either. `healthy` is False meanwhile, and callers should stop taking on new
    work.
    """

    def __init__(self, engine: Engine, spool: Spool | None = None) -> None:
        self._engine = engine
        self._spool = spool
        self._pending: deque[_Pending] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._kept: list[Write] = []
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why the database cannot be written to at present, or None when it can."""
        return self._failure

    @property
    def healthy(self) -> bool:
        """Whether the last transaction reached the disk."""
        return self._failure is None

    @property
    def depth(self) -> int:
        """How many writes wait."""
        return len(self._pending)

    def submit(
        self, write: Write, then: Callable[[object], None] | None = None
    ) -> asyncio.Future[object]:
        """Hand in a write; the future is done when it is durable, with its result.

        `then` is called with the result on the event loop, in the order in which writes became
        durable, whatever becomes of the future: it must be short and must not raise.

        Raises Refusal (STORAGE_UNAVAILABLE) when the journal is closed or its queue is full. The
        future raises the same once the database has been away for `PATIENCE_S`; the write stays
        and is made when it is back. Cancelling the future does not take the write back either.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        with self._wake:
            if self._closing or len(self._pending) >= PENDING_MAX:
                raise _unavailable("The ledger cannot take on more at the moment")
            self._pending.append(_Pending(time.monotonic(), write, future, loop, then))
            self._wake.notify()
        return future

    def close(self, timeout_s: float = 10.0) -> Sequence[Write]:
        """Write what waits and stop; what could not be written in time is given back."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        left = [pending.write for pending in self._pending]
        if self._spool is not None:
            if not self._thread.is_alive():
                self._keep()
            self._spool.close()
        return left

    def _run(self) -> None:
        delay_s = _RETRY_FIRST_S
        while batch := self._next_batch():
            if self._commit(batch):
                delay_s = _RETRY_FIRST_S
                continue
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_MAX_S)

    def _next_batch(self) -> list[_Pending]:
        """The oldest writes, left in the queue until they are durable; empty at the end."""
        with self._wake:
            while not self._pending and not self._closing:
                self._wake.wait()
            return [
                self._pending[position] for position in range(min(len(self._pending), BATCH_MAX))
            ]

    def _commit(self, batch: list[_Pending]) -> bool:
        """Write a batch in one transaction; False when the database is gone."""
        try:
            results = self._write([pending.write for pending in batch], careful=False)
        except Exception as error:  # noqa: BLE001 - each write gets its own verdict below
            if isinstance(error, DBAPIError) and is_gone(error):
                self._lost(error)
                return False
            return self._commit_singly(batch)
        self._done(batch, results)
        return True

    def _commit_singly(self, batch: list[_Pending]) -> bool:
        """One write of the batch is wrong: give each its own transaction and its own verdict."""
        for pending in batch:
            try:
                results = self._write([pending.write], careful=True)
            except Exception as error:  # noqa: BLE001 - raised to whoever handed the write in
                if isinstance(error, DBAPIError) and is_gone(error):
                    self._lost(error)
                    return False
                self._refuse(pending, error)
            else:
                self._done([pending], results)
        return True

    def _write(self, writes: Sequence[Write], *, careful: bool) -> list[object]:
        with self._engine.begin() as connection:
            return write_all(connection, writes, careful=careful)

    def _done(self, batch: list[_Pending], results: list[object]) -> None:
        if self._failure is not None:
            _log.info("the database is back", extra={"event": "journal_recovered"})
            self._failure = None
        self._drop(len(batch))
        if self._spool is not None and self._spool.holds:
            self._keep()
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Pending, object]]] = {}
        for pending, result in zip(batch, results, strict=True):
            by_loop.setdefault(pending.loop, []).append((pending, result))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, pairs)

    def _refuse(self, pending: _Pending, error: Exception) -> None:
        if isinstance(pending.write, Settle):
            # A bill that cannot be written is a defect of ours: loud, and with the whole bill.
            _log.critical(
                "a settlement was refused by the database: %s",
                msgspec.json.encode(pending.write.charge).decode(),
                exc_info=error,
            )
        self._drop(1)
        if not pending.loop.is_closed():
            pending.loop.call_soon_threadsafe(_reject, pending.future, error)

    def _drop(self, count: int) -> None:
        with self._wake:
            for _ in range(count):
                self._pending.popleft()

    def _lost(self, error: DBAPIError) -> None:
        if self._failure is None:
            _log.error(
                "the database cannot be written to: %s", error.orig, extra={"event": "journal_lost"}
            )
        self._failure = str(error.orig)
        self._keep()
        self._tell_the_waiting()

    def _keep(self) -> None:
        """Have on the disk what waits for the database."""
        if self._spool is None:
            return
        with self._wake:
            writes = [pending.write for pending in self._pending]
        if writes == self._kept:
            return
        try:
            self._spool.keep(writes)
            self._kept = writes
        except OSError as error:
            # The bills are in memory still; whoever operates this must know that a kill costs them.
            _log.critical("bills that wait for the database cannot be kept on disk: %s", error)

    def _tell_the_waiting(self) -> None:
        """Let those go who wait for too long; their writes stay."""
        limit_s = time.monotonic() - PATIENCE_S
        with self._wake:
            late = [pending for pending in self._pending if pending.since_s < limit_s]
        for pending in late:
            if not pending.loop.is_closed():
                refusal = _unavailable("The ledger did not confirm this request in time")
                pending.loop.call_soon_threadsafe(_reject, pending.future, refusal)


def _resolve(pairs: list[tuple[_Pending, object]]) -> None:
    for pending, result in pairs:
        if pending.then is not None:
            pending.then(result)
        if not pending.future.done():
            pending.future.set_result(result)


def _reject(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _unavailable(what: str) -> Refusal:
    return Refusal(RefusalKind.STORAGE_UNAVAILABLE, f"{what}; send it again.", retry_after_s=2.0)
