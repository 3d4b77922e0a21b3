"""Numbers of bytes as people write and read them on a command line."""

from __future__ import annotations

import re

import click

_SIZE = re.compile(r"(\d{1,18})(?:\.(\d{1,3}))? ?(?:([KMGTP])(i?)B?|B)?", re.IGNORECASE)
_UNITS = "KMGTP"


def parse_size(text: str) -> int | None:
    """The bytes of `500GB`, `1.5TiB` or `4096`; None for `none`. Raises a usage error."""
    if text.strip().lower() == "none":
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no size; write 500GB, 1.5TiB, a number or none")
    unit = 1
    if match[3]:
        unit = (1024 if match[4] else 1000) ** (_UNITS.index(match[3].upper()) + 1)
    fraction = match[2] or ""
    return int(match[1]) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def shown_size(count: int) -> str:
    """`1.5 GB` of 1 500 000 000."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} PB"
