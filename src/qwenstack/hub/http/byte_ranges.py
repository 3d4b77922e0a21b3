"""Range and conditional requests (RFC 9110, sections 13 and 14), over strong entity tags."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[^"]*")|(\*)')


class Span(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` (not included) of `size`. `partial`: the answer is a 206."""

    start: int
    end: int
    size: int
    partial: bool = False

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


def read_range(headers: Mapping[str, str], etag: str, size: int) -> Span | None:
    """What to send of `size` bytes; None when no such range exists (416).

    Several ranges, other units and what does not parse are answered with the whole, as the RFC
    allows; so is a range whose `If-Range` names another version.
    """
    whole = Span(0, size, size)
    text = headers.get("Range")
    condition = headers.get("If-Range")
    if text is None or (condition is not None and condition.strip() != etag):
        return whole
    found = _RANGE.fullmatch(text.strip())
    if found is None or not (found[1] or found[2]):
        return whole
    if not found[1]:
        start, end = max(size - int(found[2]), 0), size
    else:
        start = int(found[1])
        end = min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return whole
    if start >= end:
        return None
    return Span(start, end, size, partial=True)


def not_modified(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the caller has this version already (`If-None-Match`)."""
    return _names(headers.get("If-None-Match"), etag)


def precondition_failed(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the caller wants another version than this one (`If-Match`)."""
    wanted = headers.get("If-Match")
    return wanted is not None and not _names(wanted, etag)


def _names(field: str | None, etag: str) -> bool:
    if field is None:
        return False
    return any(star or tag == etag for tag, star in _TAG.findall(field))
