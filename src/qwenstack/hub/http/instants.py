"""Instants as the Hugging Face API writes them."""

from __future__ import annotations

from qwenstack.core.instants import from_us


def wire_instant(at_us: int) -> str:
    """ISO 8601 in UTC, milliseconds and a `Z`."""
    return from_us(at_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")
