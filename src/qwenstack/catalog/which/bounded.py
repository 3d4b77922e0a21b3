"""Reading files that may be hostile: only so many bytes, and only plain data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

TEXT_BYTES_MAX: Final = 1024 * 1024


class Unreadable(ValueError):
    """A file that can't be used; the message names the file, the place and what is wrong."""


def read_bytes(path: Path, limit: int = TEXT_BYTES_MAX) -> bytes:
    """At most `limit` bytes of a regular file; Unreadable where it is longer or no file."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if not path.is_file():
            raise Unreadable(f"{path.name}: not a regular file")
        if size > limit:
            raise Unreadable(f"{path.name}: {size:,} bytes, more than {limit:,}: not read")
        return file.read(limit)


def read_json(path: Path, limit: int = TEXT_BYTES_MAX) -> dict[str, object]:
    """The JSON object in the file at `path`."""
    return decode_json(read_bytes(path, limit), path.name)


def decode_json(raw: bytes, name: str) -> dict[str, object]:
    """The JSON object in `raw`; Unreadable with the place where it is none."""
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise Unreadable(f"{name}: nested too deep to be a model's") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"{name}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Unreadable(f"{name}: a JSON {type(value).__name__}, where an object is expected")
    return value


def text_of(value: object) -> str:
    """`value` if it is text, else empty."""
    return value if isinstance(value, str) else ""


def number_of(value: object) -> int:
    """`value` if it is a whole number of a sensible size, else 0."""
    fine = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
    return value if isinstance(value, int) and fine else 0
