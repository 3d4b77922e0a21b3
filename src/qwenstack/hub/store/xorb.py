"""Xorbs on the wire: chunks, each behind a header of 8 bytes, compressed or not.

A header is the version (0), the length on the wire in 3 bytes, the compression in one and the
chunk's length in 3, all little-endian. Clients may let a footer follow, which begins with
`XETBLOB`; it tells nothing that the chunks don't. Source: huggingface.co/docs/xet/xorb.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import lz4.frame  # type: ignore[import-untyped]
import numpy as np

from qwenstack.hub.store.gearhash import CHUNK_BYTES_MAX
from qwenstack.hub.store.packs import PACK_BYTES_MAX, PACK_CHUNKS_MAX, PackIndex

HEADER_BYTES = 8
FOOTER_BYTES_MAX = 1024 * 1024
XORB_BYTES_MAX = PACK_BYTES_MAX + PACK_CHUNKS_MAX * HEADER_BYTES + FOOTER_BYTES_MAX
_FOOTER_START = b"XETBLOB"
_NONE, _LZ4, _GROUPED_LZ4 = 0, 1, 2
_HEADER = struct.Struct("<II")


class XorbError(ValueError):
    """Bytes that are no xorb; the message names the chunk and what is wrong with it."""


def chunk_header(size: int) -> bytes:
    """The header of a chunk that follows uncompressed."""
    return _HEADER.pack(size << 8, _NONE | size << 8)


def wire_offset(pack: PackIndex, position: int) -> int:
    """Where a chunk's header stands when the pack is sent with no compression."""
    return pack.starts[position] + HEADER_BYTES * position


class XorbReader:
    """A xorb that comes piece by piece. It never makes more of it than is announced."""

    def __init__(self) -> None:
        # What came of a chunk that is not whole yet. Of a footer only its start is kept.
        self._rest = b""
        self._wire_bytes = self._bytes = self._number = self._footer_bytes = 0

    def feed(self, pieces: Iterable[bytes]) -> Iterator[bytes | memoryview]:
        """The chunks, uncompressed, that are whole by now; to be taken all. Raises XorbError."""
        data = memoryview(b"".join((self._rest, *pieces)))
        self._wire_bytes += len(data) - len(self._rest)
        if self._wire_bytes > XORB_BYTES_MAX:
            raise XorbError(f"the xorb has more than the {XORB_BYTES_MAX} bytes that are allowed")
        place = 0
        while (end := place + self._whole(data[place:])) > place:
            yield self._chunk(data[place:end])
            place = end
        self._rest = bytes(data[place:])
        if self._in_footer():
            self._footer_bytes += len(self._rest) - len(_FOOTER_START)
            self._rest = _FOOTER_START
            if len(_FOOTER_START) + self._footer_bytes > FOOTER_BYTES_MAX:
                raise XorbError(f"the xorb's footer has more than {FOOTER_BYTES_MAX} bytes")

    def finish(self) -> None:
        """All pieces came. Raises XorbError when something is missing."""
        if self._rest and not self._in_footer():
            if len(self._rest) < HEADER_BYTES:
                raise XorbError(f"the xorb ends in the header of chunk {self._number}")
            raise XorbError(
                f"chunk {self._number} claims {_packed_size(self._rest)} bytes on the wire; they "
                "are not there"
            )
        if not self._number:
            raise XorbError("the xorb has no chunks")

    def _in_footer(self) -> bool:
        return self._rest.startswith(_FOOTER_START)

    def _whole(self, view: memoryview) -> int:
        """The bytes of the chunk at the start with its header; 0 when it is not whole, or none."""
        if len(view) < HEADER_BYTES or view[: len(_FOOTER_START)] == _FOOTER_START:
            return 0
        packed_size, (version, size) = _packed_size(view), (view[0], _size(view))
        if version != 0:
            raise XorbError(f"chunk {self._number} has header version {version}, 0 is known")
        if not 0 < size <= CHUNK_BYTES_MAX:
            raise XorbError(
                f"chunk {self._number} claims {size} bytes, 1 to {CHUNK_BYTES_MAX} are allowed"
            )
        if not 0 < packed_size <= 2 * CHUNK_BYTES_MAX:
            raise XorbError(f"chunk {self._number} claims {packed_size} bytes on the wire")
        end = HEADER_BYTES + packed_size
        return end if end <= len(view) else 0

    def _chunk(self, view: memoryview) -> bytes | memoryview:
        scheme, size, packed = view[4], _size(view), view[HEADER_BYTES:]
        if scheme == _NONE:
            chunk: bytes | memoryview = packed
        elif scheme in (_LZ4, _GROUPED_LZ4):
            chunk = _decompress(packed, size, self._number)
        else:
            raise XorbError(f"chunk {self._number} has compression {scheme}; 0, 1 and 2 are known")
        if len(chunk) != size:
            raise XorbError(f"chunk {self._number} claims {size} bytes and has {len(chunk)}")
        self._number += 1
        self._bytes += size
        if self._number > PACK_CHUNKS_MAX or self._bytes > PACK_BYTES_MAX:
            raise XorbError(
                f"the xorb has more than {PACK_CHUNKS_MAX} chunks or {PACK_BYTES_MAX} bytes"
            )
        return ungroup(chunk) if scheme == _GROUPED_LZ4 else chunk


def _packed_size(header: bytes | memoryview) -> int:
    return int.from_bytes(header[1:4], "little")


def _size(header: bytes | memoryview) -> int:
    return int.from_bytes(header[5:8], "little")


def write_xorb(chunks: Iterable[bytes], *, compress: bool = False) -> bytes:
    """A xorb of these chunks, without a footer."""
    parts: list[bytes] = []
    for chunk in chunks:
        packed = lz4.frame.compress(chunk) if compress else chunk
        if len(packed) < len(chunk):
            parts.append(_HEADER.pack(len(packed) << 8, _LZ4 | len(chunk) << 8))
            parts.append(packed)
        else:
            parts.append(chunk_header(len(chunk)))
            parts.append(chunk)
    return b"".join(parts)


def _decompress(packed: memoryview, size: int, number: int) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        chunk: bytes = decompressor.decompress(packed, max_length=size + 1)
    except RuntimeError as error:
        raise XorbError(f"chunk {number} is no LZ4 frame: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise XorbError(f"chunk {number} is not one LZ4 frame of the {size} bytes that it claims")
    return chunk


def ungroup(grouped: bytes | memoryview) -> bytes:
    """Undo the grouping of every fourth byte, which helps to compress 32-bit numbers."""
    octets = np.frombuffer(grouped, np.uint8)
    whole = np.empty(len(octets), np.uint8)
    start = 0
    for lane in range(4):
        count = (len(octets) - lane + 3) // 4
        whole[lane::4] = octets[start : start + count]
        start += count
    return whole.tobytes()
