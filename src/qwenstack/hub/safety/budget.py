"""What one scan may spend on what is packed, however deep: bytes unpacked, members, levels."""

from __future__ import annotations

from typing import Final

import msgspec

DEPTH_MAX: Final = 3
"""Archives in archives that are looked into; a fourth level is not."""

MEMBERS_MAX: Final = 50_000
RATIO_MAX: Final = 200
"""Unpacked bytes for a packed one, from which an archive counts as a bomb."""

BOMB_BYTES_MIN: Final = 8 * 1024 * 1024
"""Less than this harms nobody, whatever its ratio."""

_UNPACKED_BYTES_MAX: Final = 1024**3
_CHILDREN_MAX: Final = 8


class LimitReached(Exception):
    """The scan's budget is spent; the message says on what."""


class Budget(msgspec.Struct):
    """Counts down over a whole scan."""

    unpacked_bytes: int = _UNPACKED_BYTES_MAX
    members: int = MEMBERS_MAX
    children: int = _CHILDREN_MAX

    def spend_bytes(self, count: int) -> None:
        """Raises LimitReached when more was unpacked than a scan may."""
        self.unpacked_bytes -= count
        if self.unpacked_bytes < 0:
            raise LimitReached(f"more than {_UNPACKED_BYTES_MAX // 2**20} MiB to unpack")

    def spend_member(self) -> None:
        """Raises LimitReached at one member more than a scan looks at."""
        self.members -= 1
        if self.members < 0:
            raise LimitReached(f"more than {MEMBERS_MAX} members")

    def may_start_child(self) -> bool:
        """Whether one more thing may be taken apart in a process of its own; counts it."""
        self.children -= 1
        return self.children >= 0
