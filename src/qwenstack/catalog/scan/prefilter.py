"""Finds, among many files at once, those that can hold a reference to a model of the family.

Files are read into one small buffer, one behind the other, which is folded to lower case and
compared as a whole: a few vector operations on what is still in the processor's cache mark the
places where a rare sequence of two or three bytes stands (`qw`, `hsc`, a hyphen between certain
letters). Only at such places is looked for the needles themselves, so the filter is exact: a file
that holds a needle is found, and one that doesn't is not. A file whose letters
only look like a needle's is found by those letters: they are rare, and stand beside plain ones.
"""

from __future__ import annotations

import bisect
import collections
import os
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qwenstack.catalog.scan.walk import Trouble
from qwenstack.catalog.which.mentions import NEEDLES
from qwenstack.catalog.which.spelling import ODD, plain

_BUFFER_BYTES: Final = 128 * 1024
_SCRATCH_BYTES: Final = _BUFFER_BYTES
_PROBE_BYTES: Final = 8 * 1024
_AROUND_CHARACTERS: Final = 48  # more than any needle is long
_MARGIN: Final = 16  # zero bytes between files, so that no needle spans two

# A needle is found by `qw`, `qv` or `hsc`, else by the bytes around its last y, hyphen or k.
_PLAIN: Final = ("qw", "qv", "hsc")
_AROUND: Final = ("y", "-", "k")

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


def candidates(paths: Sequence[str], tally: Tally, *, file_bytes_max: int) -> Iterator[Candidate]:
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
    starts = [span[1] for span in spans]
    text = folded.tobytes()
    needles = [at for at in places.tolist() if _needle_at(text, at, buffer)]
    held = {bisect.bisect_right(starts, at) - 1 for at in needles}
    odd = [number for number, (_, *span) in enumerate(spans) if _odd(buffer, *span)]
    for number in sorted({*held, *odd}):
        path, start, stop = spans[number]
        data = bytes(buffer[start:stop])
        if number not in held and not _looks_alike(data):
            continue
        if 0 in data[:_PROBE_BYTES]:
            tally.binary += 1
            continue
        yield Candidate(path, data)


def _needle_at(folded: bytes, at: int, buffer: bytearray) -> bool:
    """Whether a needle stands around the place `at`, exactly and not only as folded."""
    around = folded[at] in _ANCHORS
    for needle, before in _STANDING.get(folded[at - around : at + 2], ()):
        start = at - before
        if folded.startswith(_FOLDED[needle], start) and (
            buffer[start : start + len(needle)].lower() == needle
        ):
            return True
    return False


def _places(folded: Bytes) -> npt.NDArray[np.int64]:
    """Where a needle may be."""
    size = len(folded)
    # Arrays that are made once: fresh ones this large cost more than the comparisons.
    q, w, v, h, s, c, mask, one = (row[:size] for row in _SCRATCH)
    for letter, row in zip("qwvhsc", (q, w, v, h, s, c), strict=True):
        np.equal(folded, ord(letter), out=row)
    w |= v
    np.logical_and(q[:-1], w[1:], out=mask[:-1])
    mask[-1] = False
    np.logical_and(h[:-2], s[1:-1], out=one[:-2])
    one[:-2] &= c[2:]
    mask[:-2] |= one[:-2]
    found = [np.flatnonzero(mask)]
    for anchor, table in _TABLES:
        np.equal(folded, ord(anchor), out=one)
        one[0] = one[-1] = False
        at = one.nonzero()[0]
        around = folded[at - 1].astype(np.uint16)
        around <<= 8
        around |= folded[at + 1]
        found.append(at[table[around]])
    return np.concatenate(found)


def _odd(buffer: bytearray, start: int, stop: int) -> bool:
    """Whether a text in the buffer has a character, beside an ASCII letter or digit, that can make
    a name look like another."""
    piece = buffer[start:stop]
    if piece.isascii() or 0 in piece[:_PROBE_BYTES]:
        return False
    raw = np.frombuffer(piece + _ZEROS, np.uint8)
    leads = np.flatnonzero(raw >= 0xC2)
    pairs = raw[leads].astype(np.uint16)
    pairs <<= 8
    pairs |= raw[leads + 1]
    leads = leads[_ODD_PAIRS[pairs]]
    wide = (raw[leads] == 0xEF) & (raw[leads + 1] != 0xBB)
    beside = _WORD[raw[leads - 1]] | _WORD[raw[leads + 2]] | _WORD[raw[leads + 3]] | wide
    return bool(beside.any())


def _looks_alike(data: bytes) -> bool:
    """Whether a needle shows once the letters beside odd ones are read as what they look like."""
    if data.isascii() or 0 in data[:_PROBE_BYTES]:
        return False
    text = data.decode("utf-8", "replace")
    done = -1
    for match in ODD.finditer(text):
        if match.start() < done:
            continue
        around = text[max(0, match.start() - _AROUND_CHARACTERS) : match.end() + _AROUND_CHARACTERS]
        done = match.end() + _AROUND_CHARACTERS // 2
        latin = plain(around).lower()
        if any(needle in latin for needle in NEEDLES):
            return True
    return False


def _odd_pairs() -> Mask:
    """For two bytes: whether a character of `ODD` begins with them in UTF-8."""
    table = np.zeros(1 << 16, np.bool_)
    for point in range(0x80, 0x10000):
        if not 0xD800 <= point < 0xE000 and ODD.match(chr(point)):
            first, second = chr(point).encode()[:2]
            table[first << 8 | second] = True
    return table


_ODD_PAIRS: Final = _odd_pairs()
_WORD: Final = np.array([chr(each).isascii() and chr(each).isalnum() for each in range(256)])


def _folded(needle: bytes) -> bytes:
    return bytes(each | 0x20 for each in needle)


def _standing() -> dict[bytes, list[tuple[bytes, int]]]:
    """The needles by the bytes that mark their place, each with what of it stands before that."""
    found: dict[bytes, list[tuple[bytes, int]]] = collections.defaultdict(list)
    for needle in NEEDLES:
        plain_at = max(needle.find(each) for each in _PLAIN)
        anchor = next((each for each in _AROUND if each in needle), "")
        at = plain_at if plain_at >= 0 else needle.rfind(anchor)
        first = at if plain_at >= 0 else at - 1
        found[_folded(needle[first : at + 2].encode())].append((needle.encode(), at))
    return found


def _tables() -> Iterator[tuple[str, Mask]]:
    """For each anchor: whether some needle has these two bytes before and after it."""
    for anchor in _AROUND:
        table = np.zeros(1 << 16, np.bool_)
        for key in _STANDING:
            if len(key) == 3 and key[1] == ord(anchor):
                table[key[0] << 8 | key[2]] = True
        yield anchor, table


_ANCHORS: Final = frozenset(map(ord, _AROUND))
_FOLDED: Final = {each.encode(): _folded(each.encode()) for each in NEEDLES}
_STANDING: Final = _standing()
_TABLES: Final = tuple(_tables())
_SCRATCH: Final = np.zeros((8, _SCRATCH_BYTES), np.bool_)
