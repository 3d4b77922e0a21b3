"""Finds, among many files at once, those that can hold a reference to a model of the family.

Files are read into one small buffer, one behind the other, which is folded to lower case and
compared as a whole: a few vector operations on what is still in the processor's cache mark the
places where a rare sequence of two or three bytes stands (`qw`, `hsc`, a hyphen between certain
letters). Only the files around such places are searched for the needles themselves, so the filter
is exact: a file that holds a needle is found, and one that doesn't is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qwenstack.catalog.scan.walk import Trouble
from qwenstack.catalog.which.mentions import NEEDLES

FILE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of a longer file, the first part is looked at and the rest is said to be left out."""

_BUFFER_BYTES: Final = 128 * 1024
_SCRATCH_BYTES: Final = _BUFFER_BYTES
_PROBE_BYTES: Final = 8 * 1024
_MARGIN: Final = 16  # zero bytes between files, so that no needle spans two

_EXACT: Final = re.compile("|".join(map(re.escape, NEEDLES)).encode())
# A needle is found by the first of these sequences that it holds, else by its last hyphen.
_RARE: Final = ("qw", "qvq", "ngy", "iyu", "hsc", "kyw")
_HYPHENATED: Final = tuple(n for n in NEEDLES if not any(rare in n for rare in _RARE))

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Candidate(NamedTuple):
    """A file worth parsing, and its bytes."""

    path: str
    data: bytes


class Tally:
    """What a run of the filter looked at: files, bytes, and what was left out."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes_read = 0
        self.binary = 0
        self.troubles: list[Trouble] = []


def candidates(
    paths: Sequence[str], tally: Tally, *, file_bytes_max: int = FILE_BYTES_MAX
) -> Iterator[Candidate]:
    """Yield those of `paths` that hold a needle; count everything in `tally`."""
    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    spans: list[tuple[str, int, int]] = []
    at = _MARGIN
    for path in paths:
        try:
            descriptor = os.open(path, _FLAGS)
        except OSError as error:
            tally.troubles.append(Trouble(path, error.strerror or "cannot be read"))
            continue
        try:
            room = _BUFFER_BYTES - _MARGIN - at
            if room < _PROBE_BYTES:
                yield from _found(buffer, spans, tally)
                spans, at = [], _MARGIN
                room = _BUFFER_BYTES - _MARGIN - at
            size = os.readv(descriptor, [view[at : at + room]])
            tally.files += 1
            if size == room:
                yield from _long(
                    path, bytes(view[at : at + size]), descriptor, file_bytes_max, tally
                )
                continue
        except OSError as error:
            tally.troubles.append(Trouble(path, error.strerror or "cannot be read"))
            continue
        finally:
            os.close(descriptor)
        tally.bytes_read += size
        spans.append((path, at, at + size))
        at += size
        view[at : at + _MARGIN] = _ZEROS
        at += _MARGIN
    yield from _found(buffer, spans, tally)


_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_ZEROS: Final = bytes(_MARGIN)


def _long(
    path: str, start: bytes, descriptor: int, file_bytes_max: int, tally: Tally
) -> Iterator[Candidate]:
    """A file that fills the rest of the buffer: read by itself, to its end or the limit."""
    pieces = [start]
    left = file_bytes_max + 1 - len(start)
    while left > 0:
        piece = os.read(descriptor, min(left, _BUFFER_BYTES))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    data = b"".join(pieces)
    if len(data) > file_bytes_max:
        data = data[:file_bytes_max]
        tally.troubles.append(Trouble(path, f"only the first {file_bytes_max} bytes were read"))
    tally.bytes_read += len(data)
    buffer = bytearray(_MARGIN) + data + bytes(_MARGIN)
    yield from _found(buffer, [(path, _MARGIN, _MARGIN + len(data))], tally)


def _found(
    buffer: bytearray, spans: Sequence[tuple[str, int, int]], tally: Tally
) -> Iterator[Candidate]:
    if not spans:
        return
    end = spans[-1][2] + _MARGIN
    folded = np.bitwise_or(np.frombuffer(buffer, np.uint8, end), 0x20)
    # A long file takes several steps, which overlap by more than any needle is long.
    steps = range(0, max(end - _MARGIN, 1), _SCRATCH_BYTES - _MARGIN)
    places = np.concatenate([_places(folded[at : at + _SCRATCH_BYTES]) + at for at in steps])
    if not len(places):
        return
    starts = np.fromiter((span[1] for span in spans), np.int64, len(spans))
    for number in np.unique(np.searchsorted(starts, places, side="right") - 1).tolist():
        path, start, stop = spans[max(number, 0)]
        data = bytes(buffer[start:stop])
        if not _EXACT.search(data.lower()):
            continue
        if 0 in data[:_PROBE_BYTES]:
            tally.binary += 1
            continue
        yield Candidate(path, data)


def _places(folded: Bytes) -> npt.NDArray[np.int64]:
    """Where a needle may be, in order."""
    size = len(folded)
    # Arrays that are made once: fresh ones this large cost more than the comparisons.
    equal, both, mask = _SCRATCH[:-2, :size], _SCRATCH[-2], _SCRATCH[-1, :size]
    for row, letter in enumerate(_LETTERS):
        np.equal(folded, ord(letter), out=equal[row])
    mask[:] = False
    for rare in _RARE:
        length = size - len(rare) + 1
        rows = [_LETTERS.index(letter) for letter in rare]
        np.logical_and(equal[rows[0]][:length], equal[rows[1]][1 : length + 1], out=both[:length])
        if len(rare) > 2:
            both[:length] &= equal[rows[2]][2:]
        mask[:length] |= both[:length]
    found = np.flatnonzero(mask)
    hyphens = np.flatnonzero(equal[_LETTERS.index("-")])
    hyphens = hyphens[(hyphens > 0) & (hyphens < size - 1)]
    around = folded[hyphens - 1].astype(np.uint16) << 8 | folded[hyphens + 1]
    hyphens = hyphens[_AROUND_HYPHEN[around]]
    return np.sort(np.concatenate((found, hyphens))) if len(hyphens) else found


def _around_hyphen() -> Mask:
    """For each pair of bytes, whether some needle has them before and after its last hyphen."""
    table = np.zeros(1 << 16, np.bool_)
    for needle in _HYPHENATED:
        at = needle.rindex("-")
        table[(ord(needle[at - 1]) | 0x20) << 8 | ord(needle[at + 1]) | 0x20] = True
    return table


_LETTERS: Final = "".join(sorted({*"".join(_RARE), "-"}))
_AROUND_HYPHEN: Final = _around_hyphen()
_SCRATCH: Final = np.zeros((len(_LETTERS) + 2, _SCRATCH_BYTES), np.bool_)
