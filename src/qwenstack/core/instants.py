"""Instants in UTC: as aware datetimes in the program, as integer microseconds in storage."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """This instant, in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def to_us(instant: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware datetime, exact."""
    elapsed = instant - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def from_us(microseconds: int) -> datetime:
    """The aware UTC datetime of `to_us`, exact."""
    return _EPOCH + timedelta(microseconds=microseconds)
