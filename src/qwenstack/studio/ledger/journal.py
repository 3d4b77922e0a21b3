"""Group commit: one thread that turns whatever waits into one durable transaction at a time.

While one transaction is on its way to the disk, the next batch gathers; so durability costs a
response its own commit at the most, and throughput hardly anything.

Where one process owns the database, a bill does not wait for a transaction at all: it is durable
once it is in a file of ours (`ahead`), and the transaction follows, for many bills at once.
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
from qwenstack.studio.ledger.ahead import AheadFile, Segment, encode_bill
from qwenstack.studio.ledger.spool import Spool, put_aside
from qwenstack.studio.ledger.writes import (
    Checkpoint,
    Forget,
    Refused,
    Run,
    Settle,
    Write,
    write_all,
    write_each,
)

_log = logging.getLogger(__name__)

BATCH_MAX = 512
PENDING_MAX = 20_000
PATIENCE_S = 15.0
_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 1.0
# How far the database may be behind bills that are durable without it.
BEHIND_S = 0.1
BEHIND_MAX = 256
# The event loop itself flushes a bill that nobody else would wait for, unless the disk is slow.
_FLUSH_HERE_S = 0.002


class _Pending(msgspec.Struct):
    """A write on its way. `ahead`: the file is to make it durable, and `durable` says that it has.

    `written` says that the database has it, `told` that whoever handed it in was told.
    """

    since_s: float
    write: Write
    future: asyncio.Future[object]
    loop: asyncio.AbstractEventLoop
    then: Callable[[object], None] | None
    record: bytes = b""
    ahead: bool = False
    durable: bool = False
    written: bool = False
    told: bool = False
    segment: Segment | None = None


class Journal:
    """Writes to the database in order, in batches, each acknowledged once it is durable.

    When the database goes away, what was handed in stays and is tried again until it is back:
    nothing that was accepted is lost while the process lives, and with a `spool` no bill is lost
    when it is killed, either. `healthy` is False meanwhile, and callers should stop taking on new
    work.

    With `ahead`, which is for the one process that writes to its database, bills are acknowledged
    from that file, and the database is at most `BEHIND_S` and a transaction behind.
    """

    def __init__(
        self, engine: Engine, spool: Spool | None = None, ahead: AheadFile | None = None
    ) -> None:
        self._engine = engine
        self._spool = spool
        self._ahead = ahead
        self._ahead_works = ahead is not None
        self._pending: deque[_Pending] = deque()
        self._wake = threading.Condition()
        # What of the queue waits for a transaction, what is durable without one, and how many
        # writes that no bill may overtake are not acknowledged yet.
        self._urgent = 0
        self._durable = 0
        self._barriers = 0
        self._closing = False
        self._failure: str | None = None
        self._kept: list[Write] = []
        self._flushing = threading.Lock()
        self._flush_s = 0.0
        self._unflushed: list[_Pending] = []
        self._flush_wake = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name="journal", daemon=True)]
        if ahead is not None:
            run = threading.Thread(target=self._run_ahead, name="journal-ahead", daemon=True)
            self._threads.append(run)
        for thread in self._threads:
            thread.start()

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
        """How many writes are not durable yet."""
        return len(self._pending) - self._durable

    async def written(self) -> None:
        """Wait until the database shows every bill acknowledged so far, where it can be reached."""
        if self._pending and self.healthy:
            await self.submit(Run(lambda _: None))

    def submit(
        self,
        write: Write,
        then: Callable[[object], None] | None = None,
        *,
        alone: bool = False,
    ) -> asyncio.Future[object]:
        """Hand in a write; the future is done when it is durable, with its result.

        `alone` says that no other request is in flight which a flush by the event loop itself would
        hold up; that saves two changes of thread.

        `then` is called with the result on the event loop, in the order in which writes became
        durable, whatever becomes of the future: it must be short and must not raise.

        Raises Refusal (STORAGE_UNAVAILABLE) when the journal is closed or its queue is full. The
        future raises the same once the database has been away for `PATIENCE_S`; the write stays
        and is made when it is back. Cancelling the future does not take the write back either.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        pending = _Pending(time.monotonic(), write, future, loop, then)
        if self._ahead_works and isinstance(write, Settle) and write.line is None:
            pending.record = encode_bill(write)
        with self._wake:
            if self._closing or len(self._pending) >= PENDING_MAX:
                raise _unavailable("The ledger cannot take on more at the moment")
            # A write whose result says where everybody stands must hold just the bills that were
            # acknowledged before it: so none overtakes it. A batch line's result is the database's.
            pending.ahead = bool(pending.record) and not self._barriers
            self._pending.append(pending)
            if not pending.ahead:
                self._urgent += 1
                self._barriers += _is_barrier(write)
            if not pending.ahead or len(self._pending) in (1, BEHIND_MAX):
                self._wake.notify()
        if pending.ahead and not (alone and self._flush_here(pending)):
            with self._flush_wake:
                self._unflushed.append(pending)
                self._flush_wake.notify()
        return future

    def close(self, timeout_s: float = 10.0) -> Sequence[Write]:
        """Write what waits and stop; what could not be written in time is given back."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        with self._flush_wake:
            self._flush_wake.notify()
        deadline_s = time.monotonic() + timeout_s
        for thread in reversed(self._threads):
            thread.join(max(0.0, deadline_s - time.monotonic()))
        left = [pending.write for pending in self._pending]
        stopped = not any(thread.is_alive() for thread in self._threads)
        if self._ahead is not None and stopped:
            self._ahead.close(remove=not left)
        if self._spool is not None:
            if stopped:
                self._keep()
            self._spool.close()
        return left

    # --- Ahead of the database ------------------------------------------------------------------

    def _flush_here(self, pending: _Pending) -> bool:
        """Make one bill durable on the event loop itself; False where a thread had better."""
        if self._unflushed or self._flush_s > _FLUSH_HERE_S:
            return False
        if not self._flushing.acquire(blocking=False):
            return False
        try:
            done = self._flush([pending])
        finally:
            self._flushing.release()
        if done:
            self._resolve([(pending, True)])
        return True

    def _run_ahead(self) -> None:
        while batch := self._next_unflushed():
            with self._flushing:
                done = self._flush(batch)
            self._tell([(pending, True) for pending in done])

    def _next_unflushed(self) -> list[_Pending]:
        with self._flush_wake:
            while not self._unflushed and not self._closing:
                self._flush_wake.wait()
            batch, self._unflushed = self._unflushed[:BATCH_MAX], self._unflushed[BATCH_MAX:]
            return batch

    def _flush(self, batch: list[_Pending]) -> list[_Pending]:
        """Make bills durable in the file; those that are. The others wait for the database."""
        assert self._ahead is not None
        begun_s = time.monotonic()
        with self._wake:
            batch = [pending for pending in batch if not pending.written]
            records = [pending.record for pending in batch]
            segment = self._ahead.reserve(records) if batch and self._ahead_works else None
            for pending in batch:
                pending.segment = segment
        if segment is None:
            self._leave_to_database(batch)
            return []
        try:
            self._ahead.write(records)
        except OSError as error:
            _log.error("bills cannot run ahead of the database any more: %s", error)
            self._ahead_works = False
            self._leave_to_database(batch)
            return []
        with self._wake:
            for pending in batch:
                pending.durable = True
                self._durable += not pending.written
        # What a slow disk costs is forgotten slowly: it holds up everybody when met again.
        self._flush_s = max(time.monotonic() - begun_s, 0.9 * self._flush_s)
        return batch

    def _leave_to_database(self, batch: list[_Pending]) -> None:
        with self._wake:
            for pending in batch:
                pending.ahead = False
                self._urgent += not pending.written
            self._wake.notify()

    # --- The database ---------------------------------------------------------------------------

    def _run(self) -> None:
        delay_s = _RETRY_FIRST_S
        while batch := self._next_batch():
            if self._commit(batch):
                delay_s = _RETRY_FIRST_S
                continue
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_MAX_S)

    def _next_batch(self) -> list[_Pending]:
        """The oldest writes, left in the queue until they are durable; empty at the end.

        Where nobody waits for them, they gather first.
        """
        with self._wake:
            while not self._closing and not self._urgent and len(self._pending) < BEHIND_MAX:
                wait_s = None
                if self._pending:
                    wait_s = self._pending[0].since_s + BEHIND_S - time.monotonic()
                    if wait_s <= 0:
                        break
                self._wake.wait(wait_s)
            return [
                self._pending[position] for position in range(min(len(self._pending), BATCH_MAX))
            ]

    def _commit(self, batch: list[_Pending]) -> bool:
        """Write a batch in one transaction; False when the database is gone."""
        try:
            with self._engine.begin() as connection:
                writes = [pending.write for pending in batch]
                results = write_all(connection, writes, careful=False)
        except Exception as error:  # noqa: BLE001 - each write gets its own verdict below
            if isinstance(error, DBAPIError) and is_gone(error):
                self._lost(error)
                return False
            return self._commit_singly(batch)
        self._done(batch, results)
        return True

    def _commit_singly(self, batch: list[_Pending]) -> bool:
        """One write of the batch is wrong: each gets its own verdict, and all one transaction.

        Any client can hand in what is refused (a batch of a file that it does not have), so that
        this must not cost everybody else a transaction each.
        """
        try:
            with self._engine.begin() as connection:
                results = write_each(connection, [pending.write for pending in batch])
        except DBAPIError as error:
            self._lost(error)
            return False
        for pending, result in zip(batch, results, strict=True):
            if isinstance(result, Refused):
                self._refuse(pending, result.error)
            else:
                self._done([pending], [result])
        return True

    def _done(self, batch: list[_Pending], results: list[object]) -> None:
        if self._failure is not None:
            _log.info("the database is back", extra={"event": "journal_recovered"})
            self._failure = None
        self._drop(len(batch))
        if self._spool is not None and self._spool.holds:
            self._keep()
        self._tell([pair for pair in zip(batch, results, strict=True) if not pair[0].told])

    def _tell(self, pairs: list[tuple[_Pending, object]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Pending, object]]] = {}
        for pair in pairs:
            by_loop.setdefault(pair[0].loop, []).append(pair)
        for loop, own in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._resolve, own)
            else:
                for pending, _ in own:
                    self._end(pending)

    def _resolve(self, pairs: list[tuple[_Pending, object]]) -> None:
        for pending, result in pairs:
            if pending.told:
                continue
            if pending.then is not None:
                pending.then(result)
            if not pending.future.done():
                pending.future.set_result(result)
            self._end(pending)

    def _end(self, pending: _Pending) -> None:
        """Whoever handed it in was told. Only now may a bill that comes later be acknowledged."""
        pending.told = True
        if _is_barrier(pending.write):
            with self._wake:
                self._barriers -= 1

    def _refuse(self, pending: _Pending, error: Exception) -> None:
        if isinstance(pending.write, Settle):
            # A bill that cannot be written is a defect of ours: loud, and with the whole bill.
            _log.critical(
                "a settlement was refused by the database: %s",
                msgspec.json.encode(pending.write.charge).decode(),
                exc_info=error,
            )
            if pending.segment is not None and self._spool is not None:
                self._put_aside(self._spool, pending.write)
        self._drop(1)

        def refuse() -> None:
            _reject(pending.future, error)
            self._end(pending)

        if pending.loop.is_closed():
            self._end(pending)
        else:
            pending.loop.call_soon_threadsafe(refuse)

    def _put_aside(self, spool: Spool, bill: Settle) -> None:
        """Keep a bill that was acknowledged, or may be at this moment."""
        try:
            put_aside(spool.folder, [bill])
        except OSError as error:
            _log.critical("it could not be kept on disk: %s", error)

    def _drop(self, count: int) -> None:
        with self._wake:
            for _ in range(count):
                pending = self._pending.popleft()
                pending.written = True
                self._durable -= pending.durable
                if pending.segment is not None:
                    pending.segment.released += 1
                self._urgent -= not pending.ahead

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
            writes = [pending.write for pending in self._pending if not pending.durable]
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
            late = [
                pending
                for pending in self._pending
                if pending.since_s < limit_s and not pending.durable
            ]
        for pending in late:
            if not pending.loop.is_closed():
                refusal = _unavailable("The ledger did not confirm this request in time")
                pending.loop.call_soon_threadsafe(_reject, pending.future, refusal)


def _reject(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _unavailable(what: str) -> Refusal:
    return Refusal(RefusalKind.STORAGE_UNAVAILABLE, f"{what}; send it again.", retry_after_s=2.0)


def _is_barrier(write: Write) -> bool:
    """Whether no later bill may be acknowledged before this write."""
    return not isinstance(write, Settle | Checkpoint | Forget)
