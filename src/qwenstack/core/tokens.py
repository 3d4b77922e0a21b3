"""Token counts, as the engine that ran the request reported them."""

from __future__ import annotations

from typing import Final

import msgspec

# More than any request can have. An engine that reports more is wrong, and its bill could not even
# be written: a ledger counts in 64 bits.
COUNT_MAX: Final = 2**40


class TokenUsage(msgspec.Struct, frozen=True):
    """What one request consumed, in tokens counted by its engine.

    `prompt` holds every input token; `cached`, `cached_explicit` and `cache_creation` are disjoint
    parts of it. `completion` holds every generated token; `reasoning` is a part of it.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cached_explicit: int = 0
    cache_creation: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """Prompt plus completion, the figure that TPM limits count."""
        return self.prompt + self.completion

    def inconsistency(self) -> str | None:
        """Say what contradicts itself in these counts, or None when they hold together."""
        counts = msgspec.structs.astuple(self)
        if min(counts) < 0:
            return f"a token count is negative: {self}"
        if max(counts) > COUNT_MAX:
            return f"a token count is larger than any request: {self}"
        if self.cached + self.cached_explicit + self.cache_creation > self.prompt:
            return f"cached tokens exceed the prompt: {self}"
        if self.reasoning > self.completion:
            return f"reasoning tokens exceed the completion: {self}"
        return None

    def __add__(self, other: TokenUsage) -> TokenUsage:
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return TokenUsage(*(a + b for a, b in zip(mine, theirs, strict=True)))
