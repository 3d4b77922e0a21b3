"""Bills on the disk ahead of the database: a record appended and flushed costs a tenth of a
transaction, and many bills then share one.

The file has a fixed size, written in full when it is made: a flush then moves the record alone and
no size, and a disk that fills up later does not matter. It is two segments in turn. A segment is
used again once the database holds all of it; the generation in each record tells what belongs to
this use of it from what an earlier one left behind.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.core.durable import sync_folder
from qwenstack.studio.ledger.writes import Settle

SUFFIX: Final = ".ahead"
SEGMENT_BYTES: Final = 2 * 1024 * 1024
# Size and checksum of what follows; then the generation, which the checksum covers.
_HEAD: Final = struct.Struct("<II")
_GENERATION: Final = struct.Struct("<Q")
_OVERHEAD: Final = _HEAD.size + _GENERATION.size

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Settle)


class Segment:
    """Half of the file. It is free when as many records were `released` as were `taken`.

    Each of the two counts has one thread that writes it.
    """

    __slots__ = ("generation", "released", "start", "taken", "used_bytes")

    def __init__(self, start: int, generation: int) -> None:
        self.start = start
        self.generation = generation
        self.used_bytes = 0
        self.taken = 0
        self.released = 0

    @property
    def free(self) -> bool:
        """Whether the database holds every record."""
        return self.taken == self.released


class AheadFile:
    """One process's file. `reserve` and `write` are for one thread at a time."""

    def __init__(self, path: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Make the file; raises OSError where there is no room for it."""
        self._path = path
        self._segment_bytes = segment_bytes
        self._current, self._other = Segment(0, 1), Segment(segment_bytes, 0)
        self._file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _write_all(self._file, bytes(2 * segment_bytes), 0)
            os.fsync(self._file)
            sync_folder(path.parent)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def reserve(self, records: Sequence[bytes]) -> Segment | None:
        """Where `records` are to go, or None when the database has too much to catch up on."""
        size = sum(map(len, records)) + _OVERHEAD * len(records)
        if size > self._segment_bytes:
            return None
        if self._current.free:
            self._renew(self._current)
        if self._current.used_bytes + size > self._segment_bytes:
            if not self._other.free:
                return None
            self._current, self._other = self._other, self._current
            self._renew(self._current)
        self._current.taken += len(records)
        return self._current

    def write(self, records: Sequence[bytes]) -> None:
        """Write where `reserve` said, durably; after an OSError nothing more may be written."""
        segment = self._current
        generation = _GENERATION.pack(segment.generation)
        framed = b"".join(_frame(generation + record) for record in records)
        _write_all(self._file, framed, segment.start + segment.used_bytes)
        os.fdatasync(self._file)
        segment.used_bytes += len(framed)

    def close(self, *, remove: bool) -> None:
        """Let go of the file; `remove` it where the database holds all of it."""
        os.close(self._file)
        if remove:
            self._path.unlink(missing_ok=True)

    def _renew(self, segment: Segment) -> None:
        segment.used_bytes = 0
        segment.generation = max(self._current.generation, self._other.generation) + 1


def encode_bill(settle: Settle) -> bytes:
    """A bill as a record."""
    return _encoder.encode(settle)


def decode_bill(record: bytes) -> Settle:
    """A record as a bill; raises msgspec.MsgspecError."""
    return _decoder.decode(record)


def read_records(path: Path) -> list[bytes]:
    """Every record that a dead process's file holds, oldest first; raises OSError.

    One that a crash cut off ends its segment: nobody was told that it is durable. Bills that the
    database holds already may be among them.
    """
    whole = path.read_bytes()
    half = len(whole) // 2
    segments = [list(_records(whole[:half])), list(_records(whole[half:]))]
    segments.sort(key=lambda records: records[0][0] if records else 0)
    return [record for records in segments for _, record in records]


def _records(segment: bytes) -> Iterator[tuple[int, bytes]]:
    """(generation, payload) of each record of a segment's last use."""
    at, current = 0, None
    while at + _HEAD.size <= len(segment):
        size, checksum = _HEAD.unpack_from(segment, at)
        body = segment[at + _HEAD.size : at + _HEAD.size + size]
        if size <= _GENERATION.size or len(body) < size or zlib.crc32(body) != checksum:
            return
        (generation,) = _GENERATION.unpack_from(body)
        current = generation if current is None else current
        if generation != current:
            return
        yield generation, body[_GENERATION.size :]
        at += _HEAD.size + size


def _frame(body: bytes) -> bytes:
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written
