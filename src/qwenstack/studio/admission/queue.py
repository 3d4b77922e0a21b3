"""A bounded, fair queue in front of an engine's slots.

Who is next when a slot falls free:
- Interactive before batch, but while batch waits it gets at least one grant in `batch_every`, so it
  is slowed and never starved. Batch never holds the last slot of several (`batch_slots`), so a long
  batch line can't make every interactive request wait for it.
- Within a class, round-robin over the workspaces that wait: each gets one grant in turn, whatever
  the number it has waiting. Work-conserving: no slot idles while something that may use it waits.

Bounds: `max_waiting` in all, `max_waiting_per_workspace`, `max_wait_s` each. When the queue is
full, a newcomer takes the place of batch work, or else of the latest request of the workspace with
the most waiting, if that is at least two more than the newcomer's own: one workspace can't shut
the others out. Everything beyond is refused as OVERLOADED with an estimate of when to come back.

One event loop, one process: the slots are those of an engine that this process drives.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import OrderedDict
from types import TracebackType

from qwenstack.core.refusals import Refusal, RefusalKind

RETRY_AFTER_MIN_S = 0.1
RETRY_AFTER_MAX_S = 60.0
# Weight of the newest observation in the mean time that a slot is held.
_HOLD_WEIGHT = 0.1


class Priority(enum.Enum):
    """Which class a request waits in."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class FairQueue:
    """Hands `slots` out. `batch_slots` None: all but one (or the only one)."""

    def __init__(
        self,
        slots: int,
        *,
        max_waiting: int = 256,
        max_waiting_per_workspace: int | None = None,
        max_wait_s: float = 60.0,
        batch_slots: int | None = None,
        batch_every: int = 16,
    ) -> None:
        if slots < 1 or max_waiting < 0 or max_wait_s <= 0 or batch_every < 1:
            raise ValueError(
                f"slots ({slots}) and batch_every ({batch_every}) must be at least 1, max_waiting "
                f"({max_waiting}) at least 0, max_wait_s ({max_wait_s}) above 0"
            )
        self.slots = slots
        self.running = 0
        self.waiting = 0
        self._max_waiting = max_waiting
        self._per_workspace = (
            max_waiting if max_waiting_per_workspace is None else max_waiting_per_workspace
        )
        self._max_wait_s = max_wait_s
        self._batch_slots = batch_slots
        self._batch_every = batch_every
        self._batch_running = 0
        self._since_batch = 0
        self._hold_s = 1.0
        self._closed = False
        self._lines = {Priority.INTERACTIVE: _Line(), Priority.BATCH: _Line()}

    def slot(self, workspace: str, priority: Priority = Priority.INTERACTIVE) -> Slot:
        """`async with queue.slot(…)`: one of the slots; raises Refusal (OVERLOADED, DRAINING)."""
        return Slot(self, workspace, priority)

    def waiting_in(self, priority: Priority) -> int:
        """How many wait in a class."""
        return self._lines[priority].waiting

    def resize(self, slots: int) -> None:
        """Change the number of slots. Fewer: those who hold one keep it."""
        if slots < 1:
            raise ValueError(f"slots is {slots}; it must be at least 1")
        self.slots = slots
        self._dispatch()

    def close(self) -> None:
        """Refuse everyone who waits and everyone who comes, as DRAINING; slots held stay held."""
        self._closed = True
        for line in self._lines.values():
            for waiter in line.drain():
                waiter.refuse(_draining())
        self.waiting = 0

    def try_enter(self, priority: Priority) -> bool:
        """Take a free slot at once, if there is one and nobody has a better claim."""
        if self._closed or self.running >= self.slots:
            return False
        if priority is Priority.BATCH:
            if self._batch_running >= self.batch_slots:
                return False
            self._batch_running += 1
        self.running += 1
        return True

    def leave(self, priority: Priority, held_s: float | None) -> None:
        """Give a slot up, and hand it on. `held_s` None: it was never used."""
        self.running -= 1
        if priority is Priority.BATCH:
            self._batch_running -= 1
        if held_s is not None:
            self._hold_s += _HOLD_WEIGHT * (held_s - self._hold_s)
        if self.waiting:
            self._dispatch()

    async def wait(self, workspace: str, priority: Priority) -> None:
        """Wait in line until a slot is ours; raises Refusal."""
        if self._closed:
            raise _draining()
        line = self._lines[priority]
        self._make_room(workspace, priority)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(workspace, loop.create_future())
        line.join(waiter)
        self.waiting += 1
        timer = loop.call_later(self._max_wait_s, self._give_up, line, waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if line.quit(waiter):
                self.waiting -= 1
            elif waiter.holds_slot:
                # The slot came in the same turn of the loop as the cancellation: pass it on.
                self.leave(priority, None)
            elif not waiter.granted.cancelled():
                waiter.granted.exception()  # Refused in that same turn: seen, and overruled.
            raise
        finally:
            timer.cancel()

    def retry_after_s(self) -> float:
        """How long until someone who came now would probably be served, in seconds."""
        estimate = (self.waiting + 1) * self._hold_s / self.slots
        return min(max(estimate, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)

    @property
    def batch_slots(self) -> int:
        """How many slots batch work may hold at once."""
        return max(1, self.slots - 1) if self._batch_slots is None else self._batch_slots

    def _dispatch(self) -> None:
        interactive, batch = self._lines[Priority.INTERACTIVE], self._lines[Priority.BATCH]
        while self.running < self.slots:
            batch_may = batch.waiting > 0 and self._batch_running < self.batch_slots
            due = self._since_batch >= self._batch_every - 1
            if batch_may and (due or not interactive.waiting):
                self._since_batch = 0
                self._batch_running += 1
                waiter = batch.next()
            elif interactive.waiting:
                # Grants are counted only while batch waits behind them.
                self._since_batch = self._since_batch + 1 if batch.waiting else 0
                waiter = interactive.next()
            else:
                return
            self.running += 1
            self.waiting -= 1
            waiter.grant()

    def _make_room(self, workspace: str, priority: Priority) -> None:
        """Make sure that one more may wait; raises Refusal when that would be unfair or too much.

        Only when the queue is full is anything more than counted: it then looks at every workspace.
        """
        own = self._lines[priority].waiting_of(workspace)
        if own >= self._per_workspace:
            raise self._overloaded(
                f"{own} requests of this workspace wait already, which is the most allowed"
            )
        if self.waiting < self._max_waiting:
            return
        batch = self._lines[Priority.BATCH]
        if priority is Priority.INTERACTIVE and batch.waiting:
            victim = batch.latest_of(batch.longest())
        else:
            line = self._lines[priority]
            longest = line.longest() if line.waiting else None
            if longest is None or line.waiting_of(longest) < own + 2:
                raise self._overloaded(f"{self.waiting} requests wait for this model already")
            victim = line.latest_of(longest)
        self.waiting -= 1
        victim.refuse(self._overloaded("more requests came than can wait for this model"))

    def _give_up(self, line: _Line, waiter: _Waiter) -> None:
        if line.quit(waiter):
            self.waiting -= 1
            waiter.refuse(self._overloaded(f"no place came free in {self._max_wait_s:g} s"))

    def _overloaded(self, why: str) -> Refusal:
        retry_after_s = self.retry_after_s()
        return Refusal(
            RefusalKind.OVERLOADED,
            f"The model is busy: {why}. Try again in {retry_after_s:.1f} s.",
            retry_after_s=retry_after_s,
        )


class Slot:
    """One use of the queue, as an asynchronous context manager. Not for use twice."""

    __slots__ = ("_priority", "_queue", "_since_s", "_workspace")

    def __init__(self, queue: FairQueue, workspace: str, priority: Priority) -> None:
        self._queue = queue
        self._workspace = workspace
        self._priority = priority
        self._since_s = 0.0

    async def __aenter__(self) -> None:
        if not self._queue.try_enter(self._priority):
            await self._queue.wait(self._workspace, self._priority)
        self._since_s = time.monotonic()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.leave(self._priority, time.monotonic() - self._since_s)


class _Waiter:
    __slots__ = ("granted", "holds_slot", "workspace")

    def __init__(self, workspace: str, granted: asyncio.Future[None]) -> None:
        self.workspace = workspace
        self.granted = granted
        self.holds_slot = False

    def grant(self) -> None:
        # The future may have been cancelled in this turn; `wait` then sees that it holds a slot.
        self.holds_slot = True
        if not self.granted.done():
            self.granted.set_result(None)

    def refuse(self, refusal: Refusal) -> None:
        if not self.granted.done():
            self.granted.set_exception(refusal)


class _Line:
    """Those who wait in one class: a ring of workspaces, each with its own in order of arrival."""

    def __init__(self) -> None:
        self.waiting = 0
        self._ring: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()

    def waiting_of(self, workspace: str) -> int:
        own = self._ring.get(workspace)
        return 0 if own is None else len(own)

    def join(self, waiter: _Waiter) -> None:
        own = self._ring.get(waiter.workspace)
        if own is None:
            own = self._ring[waiter.workspace] = OrderedDict()
        own[waiter] = None
        self.waiting += 1

    def next(self) -> _Waiter:
        """Take the first of the workspace whose turn it is, which then goes to the ring's end."""
        workspace, own = self._ring.popitem(last=False)
        waiter, _ = own.popitem(last=False)
        if own:
            self._ring[workspace] = own
        self.waiting -= 1
        return waiter

    def quit(self, waiter: _Waiter) -> bool:
        """Take out someone who no longer waits; False if they were out already."""
        own = self._ring.get(waiter.workspace)
        if own is None or waiter not in own:
            return False
        del own[waiter]
        if not own:
            del self._ring[waiter.workspace]
        self.waiting -= 1
        return True

    def longest(self) -> str:
        """The workspace with the most waiting."""
        return max(self._ring, key=lambda workspace: len(self._ring[workspace]))

    def latest_of(self, workspace: str) -> _Waiter:
        """Take out the one that came last."""
        waiter = next(reversed(self._ring[workspace]))
        self.quit(waiter)
        return waiter

    def drain(self) -> list[_Waiter]:
        waiters = [waiter for own in self._ring.values() for waiter in own]
        self._ring.clear()
        self.waiting = 0
        return waiters


def _draining() -> Refusal:
    return Refusal(
        RefusalKind.DRAINING,
        "This server is shutting down; send the request again.",
        retry_after_s=1.0,
    )
