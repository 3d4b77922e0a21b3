"""Identifiers that sort by the time they were made (ULID layout: 48 bits of ms, 80 random bits)."""

from __future__ import annotations

import os
import time

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """Make a fresh identifier `prefix_` + 26 characters of Crockford base 32."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    characters = [""] * 26
    for position in range(25, -1, -1):
        characters[position] = _CROCKFORD[value & 31]
        value >>= 5
    return f"{prefix}_{''.join(characters)}"
