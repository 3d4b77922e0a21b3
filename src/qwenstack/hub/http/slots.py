"""So many at once, and of one account so many: whoever sends slowly leaves others their turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """`whole` slots, of which one account has at most `each`. Those that want one wait in turn."""

    def __init__(self, whole: int, each: int) -> None:
        self._whole = asyncio.Semaphore(whole)
        self._each = each
        self._own: dict[str, asyncio.Semaphore] = {}
        self._wanted: Counter[str] = Counter()

    @asynccontextmanager
    async def of(self, account: str) -> AsyncIterator[None]:
        """A slot for as long as the block runs."""
        own = self._own.setdefault(account, asyncio.Semaphore(self._each))
        self._wanted[account] += 1
        try:
            async with own, self._whole:
                yield
        finally:
            self._wanted[account] -= 1
            if not self._wanted[account]:
                del self._wanted[account], self._own[account]
