"""Identifiers that sort by the time they were made (ULID layout: 48 bits of ms, 80 random bits)."""

from __future__ import annotations

import base64
import os
import time

_TO_CROCKFORD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz"
)


def new_id(prefix: str) -> str:
    """Make a fresh identifier `prefix_` + 26 characters of Crockford base 32."""
    milliseconds = time.time_ns() // 1_000_000
    # 20 bytes are 32 characters; the last 26 of them hold the low 130 bits.
    value = b"\0\0\0\0" + milliseconds.to_bytes(6, "big") + os.urandom(10)
    return f"{prefix}_{base64.b32encode(value)[-26:].translate(_TO_CROCKFORD).decode()}"
