"""Work in a thread of its own, in order, and never far behind who asks for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Beside:
    """Does steps one after the other, of which `behind_max` may be left to do. None is done after
    one that failed. For one caller at a time.
    """

    def __init__(self, behind_max: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beside")
        self._behind_max = behind_max
        self._behind = deque[Future[None]]()

    def do(self, step: Callable[[], None]) -> None:
        """Do a step after those before. Raises what one of those raised."""
        before = self._behind[-1] if self._behind else None
        self._behind.append(self._thread.submit(_after, before, step))
        self.wait(self._behind_max)

    def wait(self, left_max: int = 0) -> None:
        """Wait until at most so many are left to do. Raises what one of them raised."""
        while len(self._behind) > left_max:
            self._behind[0].result()  # one that failed stays, for those that follow
            self._behind.popleft()

    def close(self) -> None:
        """Give up what is not begun; what is, has ended after this."""
        self._thread.shutdown(cancel_futures=True)


def _after(before: Future[None] | None, step: Callable[[], None]) -> None:
    if before is not None:
        before.result()
    step()
